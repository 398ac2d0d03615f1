//! One truth among several masters: the store and this master's copy of it, who leads, and how what a master hears comes to
//! whoever leads.

pub mod advertise;
pub mod attention;
pub mod election;
pub mod error;
pub mod peers;
pub mod readiness;
pub mod relay;
pub mod roster;
pub mod status;
pub mod store;
pub mod times;
