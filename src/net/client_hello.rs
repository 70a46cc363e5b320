use tokio_rustls::rustls::server::Acceptor;

/// The type of a TLS record with handshake messages, the first byte of every TLS connection.
const HANDSHAKE: u8 = 22;

/// What the first message of a TLS client says of where it wants to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The name of the server (SNI).
    pub server_name: Option<String>,
    /// Protocols that the client offers (ALPN), the preferred one first.
    pub protocols: Vec<Vec<u8>>,
}

/// Reads the first message of a TLS client as its bytes come, whatever records and packets they come in. It answers nothing and
/// keeps no connection.
#[derive(Default)]
pub struct ClientHelloReader {
    acceptor: Acceptor,
}

/// What is known after some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloProgress {
    /// The message is not complete.
    Incomplete,
    /// It is.
    Complete(ClientHello),
    /// It is no such message, or one that cannot be read.
    Other,
}

impl ClientHelloReader {
    /// Takes the next bytes of the connection. After anything but `Incomplete` there is nothing more to ask.
    pub fn feed(&mut self, mut bytes: &[u8]) -> HelloProgress {
        while !bytes.is_empty() {
            match self.acceptor.read_tls(&mut bytes) {
                Ok(taken) if taken > 0 => {}
                // More than a handshake message may have.
                _ => return HelloProgress::Other,
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let protocols = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
                    let server_name = hello.server_name().map(str::to_owned);
                    return HelloProgress::Complete(ClientHello { server_name, protocols });
                }
                Err(_) => return HelloProgress::Other,
            }
        }
        HelloProgress::Incomplete
    }

    /// Whether a connection that begins with this byte may begin with such a message.
    pub fn may_begin_with(first: u8) -> bool {
        first == HANDSHAKE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::testing::client_hello as hello;

    /// The same message in records of this many bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let (version, message) = (&hello[1..3], &hello[5..]);
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE], version, &length, part].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    fn read(pieces: &[&[u8]]) -> HelloProgress {
        let mut reader = ClientHelloReader::default();
        let mut last = HelloProgress::Incomplete;
        for piece in pieces {
            last = reader.feed(piece);
            if last != HelloProgress::Incomplete {
                break;
            }
        }
        last
    }

    #[test]
    fn name_and_protocols_are_found_in_whatever_pieces_the_message_comes() {
        let expected = HelloProgress::Complete(ClientHello {
            server_name: Some("a.example".to_owned()),
            protocols: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        });
        let whole = hello("a.example", &["h2", "http/1.1"]);
        assert_eq!(read(&[&whole]), expected);
        let one_by_one: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(read(&one_by_one), expected);
        for size in [1, 7, 100] {
            let records = in_records(&whole, size);
            assert_eq!(read(&[&records]), expected, "records of {size}");
            let packets: Vec<&[u8]> = records.chunks(3).collect();
            assert_eq!(read(&packets), expected, "records of {size} in packets of 3");
        }
        assert_eq!(read(&[&whole[..whole.len() - 1]]), HelloProgress::Incomplete);
    }

    #[test]
    fn an_address_is_no_server_name() {
        let expected = HelloProgress::Complete(ClientHello::default());
        assert_eq!(read(&[&hello("127.0.0.1", &[])]), expected);
    }

    #[test]
    fn other_protocols_are_known_by_their_first_bytes() {
        for other in
            [&b"PRI * HTTP/2.0\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"]
        {
            assert_eq!(read(&[other]), HelloProgress::Other, "{other:?}");
        }
    }

    #[test]
    fn arbitrary_and_damaged_bytes_are_read_without_a_panic() {
        let whole = hello("a.example", &["h2"]);
        proptest!(|(noise in prop::collection::vec(any::<u8>(), 0..600), size in 1..40_usize)| {
            let pieces: Vec<&[u8]> = noise.chunks(size).collect();
            read(&pieces);
            let record = in_records(&[&whole[..5], &noise].concat(), size);
            read(&[&record]);
        });
        proptest!(|(at in 0..whole.len(), byte: u8, size in 1..300_usize)| {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            read(&[&damaged]);
            read(&[&in_records(&damaged, size)]);
            read(&[&damaged[..at]]);
        });
    }
}
