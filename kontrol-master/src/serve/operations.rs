//! The routes of operation: `/healthz`, `/readyz`, `/metrics`. They answer without the store.

use super::{access::Caller, gateway};
use crate::{cluster::readiness::Readiness, metrics::Metrics};
use axum::{
    Extension, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use kontrol_core::{access::table::METRICS, traffic::Call};
use std::{future::ready, sync::Arc};

/// What the routes answer from.
#[derive(Debug, Clone)]
pub struct Operations {
    /// Whether this master is ready.
    pub readiness: Readiness,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
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
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], self.metrics.encode()).into_response()
    }
}
