//! Generated code and descriptors of Kontrol's protobuf packages; with the feature `json`, their messages as JSON.

#[cfg(feature = "json")]
pub mod json;

/// Every file of `proto/` with its comments and options, as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kontrol.binpb"));

/// Largest message that a service takes, and the largest order of a slave, in bytes: a MiB of JSON, which a state or an input
/// may have, takes up to 5.5 MiB as a `google.protobuf.Value` (two bytes of text, `0,`, are eleven there).
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// `kontrol.v1`: what users call.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("kontrol.v1");

    impl From<PingRequest> for PingStreamRequest {
        fn from(ping: PingRequest) -> Self {
            let kind = Some(ping_stream_request::Kind::Ping(ping));
            Self { kind }
        }
    }
}

/// `kontrol.internal.v1`: what masters say to each other. No promise to anyone else.
pub mod internal {
    /// First version.
    #[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("kontrol.internal.v1");
    }
}
