//! The domain: keys, pods, the PODS document and its digest, and the records of actions.

pub mod action;
pub mod digest;
pub mod exact;
pub mod incarnation;
pub mod invalid;
pub mod key;
pub mod pod;
pub mod selector;
pub mod whole;

pub use digest::Digest;
pub use exact::Exact;
pub use incarnation::{Incarnation, Reason, Retired};
pub use invalid::Invalid;
pub use key::PodKey;
pub use pod::{Pod, Report};
pub use selector::Selector;
