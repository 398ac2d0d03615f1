//! The domain: keys, pods, the PODS document and its digest. PURE: nothing here awaits, reads a clock, or names
//! tonic, axum or etcd.

pub mod action;
pub mod digest;
pub mod exact;
pub mod incarnation;
pub mod invalid;
pub mod json;
pub mod key;
pub mod pod;
pub mod selector;
pub(crate) mod whole;

pub use digest::Digest;
pub use exact::Exact;
pub use incarnation::{Incarnation, Reason, Retired};
pub use invalid::Invalid;
pub use key::PodKey;
pub use pod::{Pod, Report};
pub use selector::Selector;
