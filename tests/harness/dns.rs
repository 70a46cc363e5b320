use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

/// A DNS server on loopback, on UDP and TCP, whose answers a test changes while it runs.
pub struct DnsServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

/// What it answers. Names are in lower case, without the dot at the end.
#[derive(Default)]
pub struct Zone {
    /// Priority, weight, port and target of each record.
    pub services: BTreeMap<String, Vec<(u16, u16, u16, String)>>,
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// Seconds for which answers may be used.
    pub ttl: u32,
    /// Names for which the server fails (SERVFAIL).
    pub failing: BTreeSet<String>,
    /// Whether answers on UDP are cut, so that they are asked for by TCP.
    pub truncates: bool,
    /// Questions by TCP.
    pub asked_by_tcp: usize,
}

impl DnsServer {
    pub fn start() -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")) {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().expect("bound");
        let zone = Arc::new(Mutex::new(Zone { ttl: 1, ..Zone::default() }));
        let (of_udp, of_tcp) = (zone.clone(), zone.clone());
        // They end with the process.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                let answer = answer(&buffer[..length], &of_udp, false);
                let _ = answer.map(|answer| udp.send_to(&answer, client));
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let zone = of_tcp.clone();
                std::thread::spawn(move || serve(stream, &zone));
            }
        });
        Self { address, zone }
    }

    /// Changes what is answered from now on.
    pub fn change<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        change(&mut self.zone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts these targets under a service; `host` is the only one and has the address 127.0.0.1.
    pub fn put(&self, service: &str, host: &str, targets: &[(u16, u16, u16)]) {
        self.change(|zone| {
            let records = targets.iter().map(|&(priority, weight, port)| (priority, weight, port, host.to_owned()));
            zone.services.insert(service.to_owned(), records.collect());
            zone.addresses.insert(host.to_owned(), vec!["127.0.0.1".parse().expect("an address")]);
        });
    }
}

fn serve(mut stream: TcpStream, zone: &Mutex<Zone>) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        let Some(answer) = stream.read_exact(&mut question).ok().and_then(|()| answer(&question, zone, true)) else {
            return;
        };
        let length = u16::try_from(answer.len()).expect("answers of tests are short");
        if stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).is_err() {
            return;
        }
    }
}

fn answer(question: &[u8], zone: &Mutex<Zone>, is_tcp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let mut zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
    zone.asked_by_tcp += usize::from(is_tcp);
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    let known = zone.services.contains_key(&name) || zone.addresses.contains_key(&name);
    match () {
        () if zone.failing.contains(&name) => answer.metadata.response_code = ResponseCode::ServFail,
        () if !known => answer.metadata.response_code = ResponseCode::NXDomain,
        () if zone.truncates && !is_tcp => answer.metadata.truncation = true,
        () => {
            let records = records(&zone, &name, query.query_type());
            answer.add_answers(records.map(|data| Record::from_rdata(query.name().clone(), zone.ttl, data)));
        }
    }
    answer.to_vec().ok()
}

fn records(zone: &Zone, name: &str, kind: RecordType) -> impl Iterator<Item = RData> {
    let services = zone.services.get(name).into_iter().flatten().map(|(priority, weight, port, target)| {
        RData::SRV(SRV::new(*priority, *weight, *port, Name::from_ascii(format!("{target}.")).expect("a name")))
    });
    let addresses = zone.addresses.get(name).into_iter().flatten().map(|address| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    });
    services.chain(addresses).filter(move |data| data.record_type() == kind)
}
