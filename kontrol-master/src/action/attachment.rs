//! The attachment of a slave to a master: the two are connected by the slave's channel.

use kontrol_core::rollout::Slave;

/// One attachment, which begins or ends.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The slave.
    pub slave: Slave,
    /// The attachments of a slave are numbered; the highest number is the latest one.
    pub number: u64,
}
