//! The handshake: the dialling member, the dialled one and their cluster, as headers of an HTTP/1.1 upgrade.
//!
//! Nothing of a connection reaches raft before its handshake is through.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Empty, Full};

use crate::types::{ClusterId, MemberId};

/// Where the peer port takes upgrades.
pub const PEER_PATH: &str = "/watershed/peer";
const UPGRADE_TO: &str = "watershed-peer";
/// Changes whenever old and new members could misunderstand each other.
const VERSION: u32 = 1;

const VERSION_HEADER: HeaderName = HeaderName::from_static("x-watershed-version");
const LANE_HEADER: HeaderName = HeaderName::from_static("x-watershed-lane");
const REFUSAL_HEADER: HeaderName = HeaderName::from_static("x-watershed-refusal");
// The names etcd uses for the same things.
const CLUSTER_HEADER: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
const FROM_HEADER: HeaderName = HeaderName::from_static("x-server-from");
const TO_HEADER: HeaderName = HeaderName::from_static("x-raft-to");
const URLS_HEADER: HeaderName = HeaderName::from_static("x-peerurls");
/// Longest list of peer URLs that is looked at.
const URLS_BYTES_MAX: usize = 2048;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names of the lanes say it")]
pub enum Purpose {
    Control,
    Append,
    Calls,
    Snapshot,
}

impl Purpose {
    const ALL: [Self; 4] = [Self::Control, Self::Append, Self::Calls, Self::Snapshot];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Append => "append",
            Self::Calls => "calls",
            Self::Snapshot => "snapshot",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The dialling member's identity and purpose.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Hello {
    pub cluster: ClusterId,
    pub from: MemberId,
    pub to: MemberId,
    pub purpose: Purpose,
    /// Where the dialling member can be dialled, for a member that does not have it in its list yet.
    pub urls: Vec<String>,
}

/// A connection that passed the handshake: from now on everything on it is of this member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub(super) from: MemberId,
    pub(super) purpose: Purpose,
    /// For an unlisted peer: where to dial it.
    pub(super) unlisted_urls: Option<Vec<String>>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// No upgrade, or a header is missing or unreadable.
    #[error("malformed peer handshake")]
    Malformed,
    /// The dialling member has another version of the protocol.
    #[error("incompatible version of the peer protocol")]
    WrongVersion,
    /// It belongs to another cluster.
    #[error("cluster ID mismatch")]
    WrongCluster,
    /// The request is for another member.
    #[error("this URL belongs to another member")]
    WrongMember,
    /// It was removed from the cluster.
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    /// It is not in the member list as far as this member knows, which may be behind.
    #[error("member is unknown here")]
    UnknownMember,
}

impl Refusal {
    const ALL: [Self; 6] = [
        Self::Malformed,
        Self::WrongVersion,
        Self::WrongCluster,
        Self::WrongMember,
        Self::Removed,
        Self::UnknownMember,
    ];

    /// Its name in the answer and in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::WrongVersion => "wrong-version",
            Self::WrongCluster => "wrong-cluster",
            Self::WrongMember => "wrong-member",
            Self::Removed => "removed",
            Self::UnknownMember => "unknown-member",
        }
    }

    /// etcd's status for the same.
    fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::WrongVersion | Self::WrongCluster | Self::WrongMember => StatusCode::PRECONDITION_FAILED,
            Self::Removed => StatusCode::GONE,
            Self::UnknownMember => StatusCode::NOT_FOUND,
        }
    }
}

impl Hello {
    /// The request that opens a connection.
    ///
    /// # Errors
    /// The authority is no header value.
    pub fn request(&self, authority: &str) -> Result<Request<Empty<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(PEER_PATH)
            .header(HOST, authority)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, UPGRADE_TO)
            .header(VERSION_HEADER, VERSION)
            .header(CLUSTER_HEADER, self.cluster.to_string())
            .header(FROM_HEADER, self.from.to_string())
            .header(TO_HEADER, self.to.to_string())
            .header(LANE_HEADER, self.purpose.name());
        // Stored URLs that are no header (earlier versions took any) do not keep a member from connecting.
        if let Ok(urls) = HeaderValue::from_str(&self.urls.join(","))
            && !urls.is_empty()
            && urls.len() <= URLS_BYTES_MAX
        {
            request = request.header(URLS_HEADER, urls);
        }
        request.body(Empty::new())
    }

    /// Reads a request to connect.
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, Refusal> {
        let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
        if !upgrade.is_some_and(|text| text.eq_ignore_ascii_case(UPGRADE_TO)) {
            return Err(Refusal::Malformed);
        }
        if parsed::<u32>(headers, &VERSION_HEADER)? != VERSION {
            return Err(Refusal::WrongVersion);
        }
        let purpose = text(headers, &LANE_HEADER)?;
        let purpose = Purpose::ALL.into_iter().find(|known| known.name() == purpose).ok_or(Refusal::Malformed)?;
        Ok(Self {
            cluster: ClusterId(hex(headers, &CLUSTER_HEADER)?),
            from: MemberId(hex(headers, &FROM_HEADER)?),
            to: MemberId(hex(headers, &TO_HEADER)?),
            purpose,
            urls: urls(headers),
        })
    }

    /// What the answer to this request means.
    ///
    /// # Errors
    /// It is no answer of a member at all.
    pub fn answered(&self, status: StatusCode, headers: &HeaderMap) -> Result<Result<(), Refusal>, String> {
        let cluster = hex(headers, &CLUSTER_HEADER).map(ClusterId);
        let name = headers.get(REFUSAL_HEADER).and_then(|value| value.to_str().ok());
        if status == StatusCode::SWITCHING_PROTOCOLS && cluster == Ok(self.cluster) {
            return Ok(Ok(()));
        }
        match Refusal::ALL.into_iter().find(|known| Some(known.name()) == name) {
            // Only a member of the same cluster may say that this one was removed.
            Some(Refusal::Removed) if cluster != Ok(self.cluster) => Err("removal told by another cluster".into()),
            Some(refusal) => Ok(Err(refusal)),
            None => Err(format!("unexpected HTTP status {status}")),
        }
    }
}

/// The cluster that a request to connect, or its answer, names.
pub(super) fn cluster_of(headers: &HeaderMap) -> Option<ClusterId> {
    hex(headers, &CLUSTER_HEADER).ok().map(ClusterId)
}

/// The member that a request to connect names as its sender.
pub(super) fn sender_of(headers: &HeaderMap) -> Option<MemberId> {
    hex(headers, &FROM_HEADER).ok().map(MemberId)
}

/// The answer to a request to connect.
pub fn answer(cluster: ClusterId, judged: Result<(), Refusal>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if let Ok(cluster) = HeaderValue::from_str(&cluster.to_string()) {
        response.headers_mut().insert(CLUSTER_HEADER, cluster);
    }
    match judged {
        Ok(()) => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static(UPGRADE_TO));
        }
        Err(refusal) => {
            *response.status_mut() = refusal.status();
            response.headers_mut().insert(REFUSAL_HEADER, HeaderValue::from_static(refusal.name()));
            *response.body_mut() = Full::from(format!("{refusal}\n"));
        }
    }
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Refusal> {
    headers.get(name).and_then(|value| value.to_str().ok()).ok_or(Refusal::Malformed)
}

/// The URLs a member is dialled at; none when they are not given, or not usable.
fn urls(headers: &HeaderMap) -> Vec<String> {
    let Ok(list) = text(headers, &URLS_HEADER) else { return Vec::new() };
    let usable = |text: &str| url::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if list.len() > URLS_BYTES_MAX || !list.split(',').all(usable) {
        return Vec::new();
    }
    list.split(',').map(str::to_owned).collect()
}

fn parsed<T: FromStr>(headers: &HeaderMap, name: &HeaderName) -> Result<T, Refusal> {
    text(headers, name)?.parse().map_err(|_| Refusal::Malformed)
}

fn hex(headers: &HeaderMap, name: &HeaderName) -> Result<u64, Refusal> {
    u64::from_str_radix(text(headers, name)?, 16).map_err(|_| Refusal::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        let urls = vec!["http://b:1".to_owned(), "https://b:2".to_owned()];
        Hello { cluster: ClusterId(0xcc), from: MemberId(0xb), to: MemberId(0xa), purpose: Purpose::Append, urls }
    }

    fn headers(hello: Hello) -> HeaderMap {
        hello.request("localhost:1").expect("valid").headers().clone()
    }

    #[test]
    fn urls_that_are_no_header_are_left_out() {
        for url in ["http://b\n:1".to_owned(), format!("http://{}:1", "b".repeat(URLS_BYTES_MAX))] {
            let request = Hello { urls: vec![url], ..hello() }.request("a:1").expect("a request all the same");
            assert!(!request.headers().contains_key(URLS_HEADER));
        }
    }

    #[test]
    fn every_header_is_needed() {
        for name in [UPGRADE, VERSION_HEADER, CLUSTER_HEADER, FROM_HEADER, TO_HEADER, LANE_HEADER] {
            let mut headers = headers(hello());
            headers.remove(&name);
            assert_eq!(Hello::parse(&headers).expect_err("refused"), Refusal::Malformed, "without {name}");
            headers.insert(name.clone(), HeaderValue::from_static("?"));
            assert_eq!(Hello::parse(&headers).expect_err("refused"), Refusal::Malformed, "bad {name}");
        }
        let mut newer = headers(hello());
        newer.insert(VERSION_HEADER, HeaderValue::from_static("2"));
        assert_eq!(Hello::parse(&newer).expect_err("refused"), Refusal::WrongVersion);
    }

    #[test]
    fn the_dialling_side_understands_every_answer() {
        let (own, other) = (ClusterId(0xcc), ClusterId(0xcd));
        let read = |response: Response<_>| hello().answered(response.status(), response.headers());
        assert_eq!(read(answer(own, Ok(()))), Ok(Ok(())));
        for refusal in Refusal::ALL {
            assert_eq!(read(answer(own, Err(refusal))), Ok(Err(refusal)));
        }
        assert!(read(answer(other, Err(Refusal::Removed))).is_err(), "another cluster cannot remove us");
        assert!(read(answer(other, Ok(()))).is_err());
        let mut foreign = Response::new(Full::default());
        *foreign.status_mut() = StatusCode::NOT_FOUND;
        assert_eq!(read(foreign), Err("unexpected HTTP status 404 Not Found".into()));
    }
}
