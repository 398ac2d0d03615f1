//! By which address the pod of a tier is known: as given, or as drawn towards the master in use. What is odd about it is
//! said once.

use kontrol_runtime::host::{Drawing, Homeless, Host, Kernel, Reach, reach};
use std::net::{IpAddr, SocketAddr};

/// The address of one tier's pod.
#[derive(Debug, Default)]
pub(super) struct KnownAs {
    drawing: Drawing,
    /// What was said last.
    remark: Option<String>,
}

impl KnownAs {
    /// The address to report to the master in use. `others`: where the tier's masters are. Fails with the reason while
    /// there is none.
    pub(super) fn toward(
        &mut self,
        tier: &str,
        given: Option<IpAddr>,
        master: SocketAddr,
        others: &[SocketAddr],
    ) -> Result<IpAddr, String> {
        let (ip, remark) = self.look(&Kernel, given, master, others)?;
        if remark != self.remark {
            match &remark {
                // Beside its master that is a choice; elsewhere it is a fault.
                Some(remark) if reach(master.ip()) == Reach::Host => {
                    tracing::info!(tier, "{remark}")
                }
                Some(remark) => tracing::warn!(tier, "{remark}"),
                None => {}
            }
            self.remark = remark;
        }
        Ok(ip)
    }

    /// The address, and what is odd about it.
    fn look(
        &mut self,
        host: &impl Host,
        given: Option<IpAddr>,
        master: SocketAddr,
        others: &[SocketAddr],
    ) -> Result<(IpAddr, Option<String>), String> {
        if let Some(ip) = given {
            let odd = reach(ip) == Reach::Host && reach(master.ip()) != Reach::Host;
            let remark = odd.then(|| {
                format!("the pod is known by the loopback address {ip} (--ip) to the master {master} on another host: pods there may be known by the same")
            });
            return Ok((ip, remark));
        }
        match self.drawing.draw(host, master, others) {
            Ok(ip) => {
                let remark = (reach(ip) == Reach::Host).then(|| {
                    format!("the pod is known by the loopback address {ip}, for its master is on this host: where pods of other hosts report as well, give it another (--ip)")
                });
                Ok((ip, remark))
            }
            Err(Homeless { only, last }) => {
                let trouble = match only {
                    Some(only) => format!(
                        "the only address of this host towards the master {master} is {only}, which nobody elsewhere can use (--ip gives another)"
                    ),
                    None => format!(
                        "this host has no address towards the master {master} (--ip gives one)"
                    ),
                };
                let last = last.ok_or_else(|| trouble.clone())?;
                Ok((last, Some(format!("{trouble}; the pod goes on as {last}"))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with one source address for every way.
    struct From(Option<IpAddr>);

    impl Host for From {
        fn toward(&self, _: SocketAddr) -> Option<IpAddr> {
            self.0
        }
        fn has(&self, ip: IpAddr) -> bool {
            self.0 == Some(ip)
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_odd_about_an_address_is_said() {
        let remote: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let own: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let mut known = KnownAs::default();
        let look = |known: &mut KnownAs, from: &str, given: Option<&str>, to| {
            known.look(&From(from.parse().ok()), given.map(ip), to, &[])
        };
        let (_, remark) = look(&mut known, "127.0.0.1", None, own).unwrap();
        assert!(
            remark
                .unwrap()
                .contains("known by the loopback address 127.0.0.1")
        );
        let (_, remark) = look(&mut known, "10.0.0.7", Some("127.0.0.1"), remote).unwrap();
        assert!(remark.unwrap().contains("on another host"));
        let (_, remark) = look(&mut known, "127.0.0.1", Some("127.5.0.1"), own).unwrap();
        assert_eq!(remark, None);

        let mut known = KnownAs::default();
        let trouble = look(&mut known, "169.254.7.7", None, remote).unwrap_err();
        assert!(
            trouble.contains("is 169.254.7.7, which nobody elsewhere can use"),
            "{trouble}"
        );
        assert!(
            look(&mut known, "none", None, remote)
                .unwrap_err()
                .contains("has no address")
        );
        assert_eq!(
            look(&mut known, "10.0.0.7", None, remote),
            Ok((ip("10.0.0.7"), None))
        );
        let (last, remark) = look(&mut known, "169.254.7.7", None, remote).unwrap();
        assert_eq!(last, ip("10.0.0.7"));
        assert!(remark.unwrap().ends_with("the pod goes on as 10.0.0.7"));
    }
}
