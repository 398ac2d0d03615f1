//! Calls a gRPC service in process: the request is framed as HTTP/2 would carry it, the answer's frames and trailers are
//! read back. The service, its interceptors and its layers can't tell such a call from one over a socket.

use super::rule::Rpc;
use crate::serve::MESSAGE_PREFIX_BYTES;
use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Version,
    header::{
        ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
        EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
};
use http_body_util::{BodyExt, Full};
use tonic::{Code, Status, service::Routes};
use tower::ServiceExt;

/// Headers of the HTTP message itself. All others, such as `authorization`, are the call's metadata.
const NOT_METADATA: [HeaderName; 13] = [
    ACCEPT,
    ACCEPT_ENCODING,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    // Left in, a caller could have the service answer in a coding that isn't read here.
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-timeout"),
];

/// Starts a call. The caller's headers and extensions (its address, its principal) go with it.
pub(super) async fn start(
    grpc: Routes,
    rpc: &Rpc,
    parts: Parts,
    message: &[u8],
) -> Result<Frames, Status> {
    let mut request = Request::new(Full::new(framed(message)?));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = rpc.uri.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = metadata(parts.headers);
    *request.extensions_mut() = parts.extensions;
    let response = match grpc.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    match Status::from_header_map(&parts.headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        Some(_) | None => Ok(Frames {
            body,
            buffer: BytesMut::new(),
        }),
    }
}

fn framed(message: &[u8]) -> Result<Bytes, Status> {
    let length = u32::try_from(message.len())
        .map_err(|_| Status::invalid_argument("the request is too long"))?;
    Ok([&[0], length.to_be_bytes().as_slice(), message]
        .concat()
        .into())
}

fn metadata(mut headers: HeaderMap) -> HeaderMap {
    for name in &NOT_METADATA {
        headers.remove(name);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers
}

/// The messages of an answer. Dropping it ends the call.
#[derive(Debug)]
pub(super) struct Frames {
    body: tonic::body::Body,
    buffer: BytesMut,
}

impl Frames {
    /// The next message, an error that ends the answer, or `None` at its good end. Cancel-safe: what has been read stays.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            match self.buffered() {
                Ok(None) => {}
                Ok(Some(message)) => return Some(Ok(message)),
                Err(status) => return Some(Err(status)),
            }
            let frame = match self.body.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => return Some(Err(status)),
                None if self.buffer.is_empty() => return None,
                None => return Some(Err(Status::internal("the answer broke off"))),
            };
            match frame.into_data() {
                Ok(data) if self.buffer.is_empty() => {
                    let buffer = data.try_into_mut();
                    self.buffer = buffer.unwrap_or_else(|data| BytesMut::from(&*data));
                }
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let status = Status::from_header_map(&trailers)?;
                    return (status.code() != Code::Ok).then_some(Err(status));
                }
            }
        }
    }

    /// The next message if it is here in full.
    fn buffered(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<MESSAGE_PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Status::internal("the answer is compressed"));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(MESSAGE_PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}
