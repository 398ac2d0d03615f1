//! The one port: gRPC, its HTTP and JSON form, and the routes of operation.

pub mod access;
pub mod gateway;
mod holding;
pub mod listener;
pub mod operations;
pub mod rpc;

/// What gRPC puts before a message: whether it is compressed, and its length.
const MESSAGE_PREFIX_BYTES: usize = 5;
