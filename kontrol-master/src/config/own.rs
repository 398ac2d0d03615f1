//! Where the port of this master is, for whoever asks it from beside it. Nothing else of the settings is looked at: some may
//! have been given to the master as flags, which are not known here.

use super::{args::ServeArgs, mistakes::Mistakes};
use kontrol_runtime::command_line::{Mistake, given};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

/// The port of a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPort {
    /// The address that it listens on.
    pub bind: IpAddr,
    /// Its number, never 0.
    pub port: u16,
    /// The file of its certificate, where it speaks TLS.
    pub certificate: Option<PathBuf>,
}

impl ServeArgs {
    /// Where the port is by these settings.
    pub fn own_port(&self) -> Result<OwnPort, Vec<Mistake>> {
        let mut mistakes = Mistakes::default();
        let port = self.listen.port(&mut mistakes);
        if port == 0 {
            let reason = "0 picks a free one, which can't be known here: give --endpoint";
            mistakes.0.push(Mistake::new("port", reason));
        }
        let localhost = Ipv4Addr::LOCALHOST.into();
        let bind = mistakes.read("bind", given(Some(&self.listen.bind)), localhost, |text| {
            text.parse::<IpAddr>()
                .map_err(|_| format!("{text:?} is not an IP address"))
        });
        if !mistakes.0.is_empty() {
            return Err(mistakes.0);
        }
        let certificate = self.access.tls_cert.clone();
        Ok(OwnPort {
            bind,
            port,
            certificate: certificate.filter(|path| !path.as_os_str().is_empty()),
        })
    }
}
