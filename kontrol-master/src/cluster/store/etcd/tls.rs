//! The files of a TLS connection to etcd.

use crate::cluster::store::EtcdTls;
use etcd_client::{Certificate, Identity, TlsOptions};
use std::path::Path;

/// Reads the files, or says which one can't be used.
pub(super) async fn read(files: &EtcdTls) -> Result<TlsOptions, String> {
    let ca = file(&files.ca, "CERTIFICATE-----").await?;
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
    if let Some((cert, key)) = &files.identity {
        let cert = file(cert, "CERTIFICATE-----").await?;
        let key = file(key, "PRIVATE KEY-----").await?;
        options = options.identity(Identity::from_pem(cert, key));
    }
    Ok(options)
}

/// A PEM file with something of this kind in it: TLS itself takes a file without for one with no entries.
async fn file(path: &Path, kind: &str) -> Result<Vec<u8>, String> {
    // Read on a blocking thread: the file may be on a network.
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(owned)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(format!("can't read {}: {error}", path.display())),
        Err(error) => return Err(format!("can't read {}: {error}", path.display())),
    };
    if bytes
        .windows(kind.len())
        .any(|window| window == kind.as_bytes())
    {
        return Ok(bytes);
    }
    let kind = kind.trim_end_matches('-').to_lowercase();
    Err(format!("{} holds no {kind} in PEM", path.display()))
}
