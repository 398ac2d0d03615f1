//! The routes of operation: `/healthz`, `/readyz`, `/metrics`, `/openapi.json`. They answer without the store.
//!
//! No descriptor has them, so what `/openapi.json` says of them stands here, in [`ROUTES`].

use super::{
    access::Caller,
    gateway::{self, openapi::Plain},
};
use crate::{cluster::readiness::Readiness, metrics::Metrics};
use axum::{
    Extension, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use kontrol_core::{access::table::METRICS, traffic::Call};
use std::{future::ready, sync::Arc};
use tonic::Code;

/// What `/metrics` answers with.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is said of the routes.
pub const ROUTES: [Plain; 4] = [
    Plain {
        path: "/healthz",
        summary: "Tells that the process serves",
        answers: &[(200, "text/plain", "It does.")],
        errors: &[],
        rule: Plain::EVERYBODY,
        is_probe: true,
    },
    Plain {
        path: "/readyz",
        summary: "Tells whether keepalives count here: the leader hears this master, or the store can be written",
        answers: &[
            (200, "text/plain", "They do."),
            (503, "text/plain", "They do not, and why."),
        ],
        errors: &[],
        rule: Plain::EVERYBODY,
        is_probe: true,
    },
    Plain {
        path: "/metrics",
        summary: "Tells the metrics of this master, for Prometheus",
        answers: &[(200, "application/openmetrics-text", "The metrics.")],
        errors: &[
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::ResourceExhausted,
        ],
        rule: METRICS,
        is_probe: false,
    },
    Plain {
        path: "/openapi.json",
        summary: "Tells this document",
        answers: &[(200, "application/json", "The document, OpenAPI 3.1.")],
        errors: &[],
        rule: Plain::EVERYBODY,
        is_probe: false,
    },
];

/// What the routes answer from.
#[derive(Debug, Clone)]
pub struct Operations {
    /// Whether this master is ready.
    pub readiness: Readiness,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// What `/openapi.json` shows: everybody may read what this build serves, and it holds nothing else.
    pub openapi: Bytes,
}

impl Operations {
    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(|| ready("ok\n")))
            .route(
                "/readyz",
                get(|State(this): State<Self>| ready(this.readyz())),
            )
            .route(
                "/metrics",
                get(
                    |State(this): State<Self>, Extension(caller): Extension<Caller>| {
                        ready(this.metrics(&caller))
                    },
                ),
            )
            .route(
                "/openapi.json",
                get(|State(this): State<Self>| ready(this.openapi())),
            )
            .with_state(self)
    }

    fn readyz(&self) -> impl IntoResponse + use<> {
        match self.readiness.check() {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {why}\n"),
            ),
        }
    }

    fn metrics(&self, caller: &Caller) -> Response {
        // However busy this master is: its metrics tell why.
        let asked = caller.authorize(METRICS);
        let begun = asked.and_then(|()| caller.begin(METRICS, Call::Glance));
        let _answering = match begun {
            Ok(admission) => admission,
            Err(status) => return gateway::refused(&status),
        };
        (
            [(header::CONTENT_TYPE, METRICS_TYPE)],
            self.metrics.encode(),
        )
            .into_response()
    }

    fn openapi(&self) -> impl IntoResponse + use<> {
        (
            [(header::CONTENT_TYPE, "application/json")],
            self.openapi.clone(),
        )
    }
}
