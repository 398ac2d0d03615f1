//! `grpc.health.v1`, whose watches end when this master stops.

use super::stream::until_stop;
use futures::Stream;
use std::pin::Pin;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::{
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService},
};

/// The service; the reporter decides what it says.
pub(super) fn service(
    reporter: HealthReporter,
    token: CancellationToken,
) -> HealthServer<impl Health> {
    HealthServer::new(Service {
        inner: HealthService::from_health_reporter(reporter),
        token,
    })
}

#[derive(Debug)]
struct Service {
    inner: HealthService,
    token: CancellationToken,
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.inner.check(request).await
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watch = self.inner.watch(request).await?;
        let token = self.token.clone();
        Ok(watch.map(|states| Box::pin(until_stop(states, token)) as Self::WatchStream))
    }
}
