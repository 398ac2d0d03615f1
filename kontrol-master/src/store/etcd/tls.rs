//! The files of a TLS connection to etcd.

use crate::store::EtcdTls;
use etcd_client::{Certificate, Identity, TlsOptions};
use std::path::Path;

/// Reads the files, or says which one can't be read.
pub(super) async fn read(files: &EtcdTls) -> Result<TlsOptions, String> {
    let mut options =
        TlsOptions::new().ca_certificate(Certificate::from_pem(file(&files.ca).await?));
    if let Some((cert, key)) = &files.identity {
        options = options.identity(Identity::from_pem(file(cert).await?, file(key).await?));
    }
    Ok(options)
}

async fn file(path: &Path) -> Result<Vec<u8>, String> {
    // Read on a blocking thread: the file may be on a network.
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(owned)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(format!("can't read {}: {error}", path.display())),
        Err(error) => Err(format!("can't read {}: {error}", path.display())),
    }
}
