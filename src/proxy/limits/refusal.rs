use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// By this gRPC libraries time the retries that a service config asks for.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// What is limited, under the names of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy) enum Limit {
    /// Calls.
    Requests,
    /// Bytes of requests and answers.
    Bytes,
    /// Open watches.
    Watches,
    /// Leases that are there.
    Leases,
    /// Keys that exist.
    StoredKeys,
    /// Bytes of keys and values that exist.
    StoredBytes,
    /// Bytes of one answer.
    AnswerBytes,
    /// Requests that wait for their turn; no key of the file.
    Waiting,
}

impl Limit {
    pub(super) const ALL: [Self; 8] = [
        Self::Requests,
        Self::Bytes,
        Self::Watches,
        Self::Leases,
        Self::StoredKeys,
        Self::StoredBytes,
        Self::AnswerBytes,
        Self::Waiting,
    ];

    /// Its key in the file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests-per-second",
            Self::Bytes => "bytes-per-second",
            Self::Watches => "watches",
            Self::Leases => "leases",
            Self::StoredKeys => "stored-keys",
            Self::StoredBytes => "stored-bytes",
            Self::AnswerBytes => "answer-bytes",
            Self::Waiting => "requests-waiting",
        }
    }

    /// Whether time alone makes no room.
    fn lasts(self) -> bool {
        match self {
            Self::Leases | Self::StoredKeys | Self::StoredBytes | Self::AnswerBytes => true,
            Self::Requests | Self::Bytes | Self::Watches | Self::Waiting => false,
        }
    }

    /// What the client is told.
    pub(super) fn text(self, max: u64) -> String {
        format!("the tenant's limit {:?} of {max} is reached", self.name())
    }

    /// The answer to what was too much, with the time after which it may be tried again if that is known.
    ///
    /// The time is there twice: as `google.rpc.RetryInfo` for who reads details, and as `grpc-retry-pushback-ms`, by which
    /// gRPC libraries time the retries that a service config asks for; a negative number there tells them not to.
    pub(super) fn status(self, max: u64, retry: Option<Duration>) -> Status {
        let text = self.text(max);
        let Some(retry) = retry else {
            let mut status = Status::resource_exhausted(text);
            if self.lasts() {
                status.metadata_mut().insert(PUSHBACK, MetadataValue::from_static("-1"));
            }
            return status;
        };
        let details = RpcStatus {
            code: Code::ResourceExhausted as i32,
            message: text.clone(),
            details: vec![AnyMessage {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: RetryInfo {
                    delay: Some(RetryDelay {
                        seconds: i64::try_from(retry.as_secs()).unwrap_or(i64::MAX),
                        nanos: retry.subsec_nanos().cast_signed(),
                    }),
                }
                .encode_to_vec(),
            }],
        };
        let mut headers = HeaderMap::new();
        let millis = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        headers.insert(PUSHBACK, HeaderValue::from(millis));
        let (details, metadata) = (details.encode_to_vec().into(), MetadataMap::from_headers(headers));
        Status::with_details_and_metadata(Code::ResourceExhausted, text, details, metadata)
    }
}

// The messages of google/rpc/status.proto and error_details.proto that are sent.

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<RetryDelay>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryDelay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_and_when() {
        let status = Limit::Requests.status(10, Some(Duration::from_millis(1500)));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "the tenant's limit \"requests-per-second\" of 10 is reached");
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1501");
        let details = RpcStatus::decode(status.details()).unwrap();
        assert_eq!((details.code, details.message.as_str()), (8, status.message()));
        let info = RetryInfo::decode(&details.details[0].value[..]).unwrap();
        assert_eq!(info.delay, Some(RetryDelay { seconds: 1, nanos: 500_000_000 }));
        assert!(Limit::Leases.status(10, None).details().is_empty());
    }
}
