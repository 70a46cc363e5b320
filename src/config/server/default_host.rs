use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::super::url::{Place, split};
use super::raw::{DEFAULT_CLIENT_URL, DEFAULT_PEER_URL, RawServerConfig};
use crate::net::TcpDialer;

impl RawServerConfig {
    /// Where it listens on all addresses of IPv4 and advertises the default URL, advertises one that others can dial, as
    /// etcd does; gives the address in it.
    pub(super) fn advertise_default_host(&mut self) -> Option<Ipv4Addr> {
        self.advertise(default_host)
    }

    fn advertise(&mut self, find: impl FnOnce() -> Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let peers = Some(self.listen_peer_urls.as_str());
        let peers = peers.filter(|_| self.initial_advertise_peer_urls.trim() == DEFAULT_PEER_URL).and_then(port_of_all);
        let clients = self.listen_client_urls.as_deref();
        let is_default = self.advertise_client_urls.as_deref().is_some_and(|urls| urls.trim() == DEFAULT_CLIENT_URL);
        let clients = clients.filter(|_| is_default).and_then(port_of_all);
        if peers.is_none() && clients.is_none() {
            return None;
        }
        let host = find()?;
        if let Some(port) = peers {
            self.initial_advertise_peer_urls = format!("http://{host}:{port}");
        }
        if let Some(port) = clients {
            self.advertise_client_urls = Some(format!("http://{host}:{port}"));
        }
        Some(host)
    }
}

/// The port of the first URL if that stands for all addresses of IPv4. The first one is that of the sorted list, as in etcd.
fn port_of_all(urls: &str) -> Option<u16> {
    match split(urls.split(',').map(str::trim).min()?) {
        Ok((_, Place::Tcp(place))) if place.host() == "0.0.0.0" => Some(place.port()),
        _ => None,
    }
}

/// The address of this machine from which its default route begins. Nothing is sent.
fn default_host() -> Option<Ipv4Addr> {
    // For documentation: no other route leads there.
    let outside = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 77), 2380));
    match TcpDialer::source_towards(outside) {
        Ok(IpAddr::V4(host)) if !host.is_loopback() && !host.is_unspecified() => Some(host),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::super::flags::Variables;
    use super::super::super::unsupported::{Mode, read_flags};
    use super::*;

    /// What is advertised to peers and to clients, and whether the address was needed.
    fn advertised(line: &str, host: Option<Ipv4Addr>) -> (String, Option<String>, bool) {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let (mut raw, _) = read_flags::<RawServerConfig>(Mode::Server, &args, &Variables::none()).expect("readable");
        let used = raw.advertise(|| host).is_some();
        (raw.initial_advertise_peer_urls, raw.advertise_client_urls, used)
    }

    #[test]
    fn who_listens_everywhere_advertises_an_address_that_others_can_dial() {
        // Cause: localhost was advertised, and members on other machines dialled themselves.
        let host = Some(Ipv4Addr::new(10, 0, 0, 7));
        let expect = |line: &str, peers: &str, clients: Option<&str>, used: bool| {
            assert_eq!(advertised(line, host), (peers.to_owned(), clients.map(str::to_owned), used), "{line}");
        };
        expect("", DEFAULT_PEER_URL, None, false);
        expect("--listen-peer-urls http://0.0.0.0:7", "http://10.0.0.7:7", None, true);
        expect("--listen-peer-urls http://127.0.0.1:7,http://0.0.0.0:8", "http://10.0.0.7:8", None, true);
        expect("--listen-peer-urls http://10.0.0.7:7", DEFAULT_PEER_URL, None, false);
        let given = "--initial-advertise-peer-urls http://a:1 --listen-peer-urls http://0.0.0.0:7";
        expect(given, "http://a:1", None, false);
        let clients = "--listen-client-urls http://0.0.0.0:9 --advertise-client-urls";
        expect(&format!("{clients} {DEFAULT_CLIENT_URL}"), DEFAULT_PEER_URL, Some("http://10.0.0.7:9"), true);
        expect(&format!("{clients} http://a:1"), DEFAULT_PEER_URL, Some("http://a:1"), false);
        let unknown = advertised("--listen-peer-urls http://0.0.0.0:7", None);
        assert_eq!(unknown, (DEFAULT_PEER_URL.to_owned(), None, false), "a machine without a default route");
    }
}
