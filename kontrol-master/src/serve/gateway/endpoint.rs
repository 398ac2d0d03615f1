//! One path pattern of the router: finds the operation that a request means, and carries it out.

use super::{
    answer::{self, Format},
    call, error, request,
    rule::Operation,
    template::split_verb,
};
use crate::serve::access::{Admission, Caller};
use axum::{body::Body, extract::Request, response::Response};
use http::{Method, request::Parts};
use kontrol_core::traffic::Call;
use prost_reflect::DescriptorPool;
use std::sync::Arc;
use tonic::{Status, service::Routes};

/// The operations of one pattern: they differ in verb or HTTP method.
#[derive(Debug)]
pub(super) struct Endpoint {
    operations: Vec<Operation>,
    grpc: Routes,
    pool: DescriptorPool,
}

impl Endpoint {
    pub(super) fn new(operations: Vec<Operation>, grpc: Routes, pool: DescriptorPool) -> Self {
        Self {
            operations,
            grpc,
            pool,
        }
    }

    /// Answers a request whose path matched the pattern.
    pub(super) async fn answer(self: Arc<Self>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        match self.operation(&parts.method, parts.uri.path()) {
            Ok(operation) => self
                .carry_out(operation, parts, body)
                .await
                .unwrap_or_else(|status| error::response(&status, &self.pool)),
            Err(refusal) => *refusal,
        }
    }

    /// A last segment that ends with no known verb is all value: `/v1/pods/a:b` asks for the pod `a:b`.
    fn operation(&self, method: &Method, path: &str) -> Result<&Operation, Box<Response>> {
        // HEAD is GET without the body, which the router leaves out.
        let method = match *method {
            Method::HEAD => &Method::GET,
            _ => method,
        };
        let (_, last) = split_verb(path);
        let known = |verb: &&str| {
            self.operations
                .iter()
                .any(|o| o.template.verb() == Some(verb))
        };
        let verb = last.filter(known);
        let candidates = || self.operations.iter().filter(|o| o.template.verb() == verb);
        if let Some(operation) = candidates().find(|o| o.method == *method) {
            return Ok(operation);
        }
        let mut allowed: Vec<&str> = candidates().map(|o| o.method.as_str()).collect();
        if allowed.is_empty() {
            return Err(Box::new(error::not_found(path)));
        }
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        let refusal = error::method_not_allowed(method, path, &allowed.join(", "));
        Err(Box::new(refusal))
    }

    async fn carry_out(
        &self,
        operation: &Operation,
        mut parts: Parts,
        body: Body,
    ) -> Result<Response, Status> {
        let rpc = &operation.rpc;
        let mut held = None;
        // The service asks as well, but only once the body is read.
        let admission = match parts.extensions.get::<Caller>() {
            Some(caller) => {
                let name = rpc.uri.path().trim_start_matches('/');
                caller.authorize(name)?;
                held = Some(caller.upload());
                caller.begin(
                    name,
                    if rpc.streams {
                        Call::Stream
                    } else {
                        Call::Request
                    },
                )?
            }
            None => Admission::default(),
        };
        parts.extensions.insert(admission.clone());
        let message = request::message(operation, &parts, body, held.as_mut()).await?;
        let format = Format::of(&parts.headers);
        let frames = call::start(self.grpc.clone(), rpc, parts, &message).await?;
        let answer = if rpc.streams {
            answer::stream(operation, frames, format, self.pool.clone()).await
        } else {
            answer::unary(operation, frames).await
        };
        answer.map(|response| admission.until_answered(response))
    }
}
