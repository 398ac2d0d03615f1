//! What is told of the ensemble.

use super::*;
use crate::cluster::store::double::Faulty;
use kontrol_proto::v1::{GetEnsembleRequest, ensemble_service_client::EnsembleServiceClient};

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_store_made_longer_is_told_and_one_as_asked_for_is_not() {
    for (least, told) in [(1, None), (15, Some(15))] {
        let store = Faulty::new();
        store.least_lease(Duration::from_secs(least));
        let leader = Leader::on(Arc::new(store)).await;
        let service = EnsembleServiceServer::new(ensemble::Service::new(leader.context.clone()));
        let mut client = EnsembleServiceClient::new(service);
        let ensemble = client.get_ensemble(GetEnsembleRequest::default()).await;
        let settings = ensemble.unwrap().into_inner().settings.unwrap();
        assert_eq!(settings.lease.map(|lease| lease.seconds), told);
    }
}
