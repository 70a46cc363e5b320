//! Questions to the processes of a set-up, which are on the loopback interface.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Time that a page may take.
const PAGE_MAX: Duration = Duration::from_secs(5);
/// Time that a forwarder may take to make a connection of its own.
const FORWARD_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Whether someone listens there.
pub(in crate::bench) fn connects(address: &str) -> bool {
    TcpStream::connect(address).is_ok()
}

/// Whether a connection to a forwarder becomes one to this listener. The address may be that of someone else who was
/// faster.
pub(in crate::bench) fn reaches(address: &str, far_end: &TcpListener) -> bool {
    let Ok(_open) = TcpStream::connect(address) else { return false };
    let arrives = poll(&mut [PollFd::new(far_end, PollFlags::IN)], Some(&FORWARD_MAX));
    arrives.is_ok_and(|ready| ready > 0) && far_end.accept().is_ok()
}

/// A metric of a member without labels, by its name.
pub(in crate::bench) fn metric(endpoint: &str, name: &str) -> Result<f64, String> {
    let address = endpoint.trim_start_matches("http://");
    let text = page(address, "/metrics").map_err(|error| format!("metrics of {address}: {error}"))?;
    value(&text, name).ok_or_else(|| format!("metrics of {address}: there is no {name}"))
}

fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A page over HTTP/1.0, with its head.
pub(in crate::bench) fn page(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PAGE_MAX))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_leads_elsewhere_does_not_reach() {
        let [someone, far_end] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        assert!(!reaches(&address(&someone), &far_end));
        assert!(reaches(&address(&far_end), &far_end));
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# HELP a b\na_total 3\na 1.5\na{b=\"c\"} 7\n";
        assert_eq!((value(text, "a"), value(text, "a_total"), value(text, "b")), (Some(1.5), Some(3.0), None));
    }
}
