use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op};

/// What the writers were told.
#[derive(Default)]
pub struct Acknowledged {
    /// Key to its value and the revision of the answer; none for a delete.
    pub keys: BTreeMap<String, (Option<String>, i64)>,
    /// Newest revision in any answer.
    pub revision: i64,
    /// Answers received.
    pub count: usize,
    /// Keys of requests without an answer: either outcome is right.
    pub unknown: Vec<String>,
}

/// Writes as fast as answers come until told to stop or refused, over `writers` tasks at once. Every fourth write is a
/// transaction over two keys, every seventh deletes what was written before.
pub async fn write_until_told(client: &Client, round: usize, writers: usize, stop: &AtomicBool) -> Acknowledged {
    let tasks = (0..writers).map(|writer| {
        let client = client.clone();
        async move { write(client, round, writer, stop).await }
    });
    let mut all = Acknowledged::default();
    for part in join_all(tasks).await {
        all.revision = all.revision.max(part.revision);
        all.count += part.count;
        all.keys.extend(part.keys);
        all.unknown.extend(part.unknown);
    }
    all
}

fn put(key: &str, value: &str) -> RequestOp {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(request)) }
}

async fn write(client: Client, round: usize, writer: usize, stop: &AtomicBool) -> Acknowledged {
    let mut kv = client.kv();
    let mut told = Acknowledged::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("crash/{round:02}/{writer:02}/{number:06}");
        let value = format!("value of {key} {}", "x".repeat(number % 200));
        let pair = format!("{key}/pair");
        let mut written = vec![(key.clone(), Some(value.clone()))];
        let limit = Duration::from_secs(5);
        let answer = if number % 7 == 6 {
            written = vec![(format!("crash/{round:02}/{writer:02}/{:06}", number - 1), None)];
            let request = DeleteRangeRequest { key: written[0].0.clone().into(), ..Default::default() };
            tokio::time::timeout(limit, kv.delete_range(request))
                .await
                .map(|answer| answer.map(|a| a.into_inner().header))
        } else if number % 4 == 3 {
            written.push((pair.clone(), Some(value.clone())));
            let request = TxnRequest { success: vec![put(&key, &value), put(&pair, &value)], ..Default::default() };
            tokio::time::timeout(limit, kv.txn(request)).await.map(|answer| answer.map(|a| a.into_inner().header))
        } else {
            let request = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
            tokio::time::timeout(limit, kv.put(request)).await.map(|answer| answer.map(|a| a.into_inner().header))
        };
        match answer {
            Ok(Ok(header)) => {
                let revision = header.expect("header").revision;
                assert!(revision > told.revision, "revisions of one writer ascend: {revision} after {}", told.revision);
                told.revision = revision;
                told.count += 1;
                told.keys.extend(written.into_iter().map(|(key, value)| (key, (value, revision))));
            }
            Ok(Err(_)) | Err(_) => {
                told.unknown.extend(written.into_iter().map(|(key, _)| key));
                break;
            }
        }
    }
    told
}
