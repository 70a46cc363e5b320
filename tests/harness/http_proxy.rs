use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// An HTTP proxy on loopback: passes requests with a whole URL on, makes tunnels, and remembers what it was asked.
pub struct HttpProxy {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl HttpProxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (address, asked) = (listener.local_addr().expect("bound"), Arc::new(Mutex::new(Vec::new())));
        let notes = asked.clone();
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let notes = notes.clone();
                std::thread::spawn(move || pass(client, &notes));
            }
        });
        Self { address, asked }
    }

    /// The heads of all requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves one request; none where the client sent no whole one.
fn pass(client: TcpStream, notes: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    notes.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    let (line, fields) = head.split_once("\r\n")?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    if method == "CONNECT" {
        let server = TcpStream::connect(target).ok()?;
        (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
        return both_ways(client, reader, server);
    }
    let (host, path) = target.strip_prefix("http://")?.split_once('/')?;
    let server = TcpStream::connect(host).ok()?;
    (&server).write_all(format!("{method} /{path} HTTP/1.1\r\n{fields}").as_bytes()).ok()?;
    both_ways(client, reader, server)
}

fn both_ways(client: TcpStream, mut reader: impl Read + Send + 'static, server: TcpStream) -> Option<()> {
    let mut to_server = server.try_clone().ok()?;
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut reader, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    std::io::copy(&mut &server, &mut &client).ok()?;
    client.shutdown(Shutdown::Both).ok()
}
