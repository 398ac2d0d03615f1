//! That a slave is attached to a master.

use kontrol_core::rollout::Slave;

/// A slave that attached, or went.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The slave.
    pub slave: Slave,
    /// Which of its attachments this is.
    pub number: u64,
}
