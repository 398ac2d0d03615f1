//! The one port: gRPC, its HTTP and JSON form, and the routes of operation.

pub mod access;
pub mod gateway;
mod holding;
pub mod listener;
pub mod operations;
pub mod rpc;
