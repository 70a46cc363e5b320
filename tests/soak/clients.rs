use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::*;

use super::load::{KEYS, PREFIX, WRITERS, everything};
use super::record::Record;
use super::writer::revision;
use super::{by_certificate, logged_in};
use crate::harness::{Answers, Certificates};

/// Compactions after which a revision is gone.
const KEPT: usize = 8;

/// One read of some kind, or a write that must be refused.
pub async fn read(client: Client, number: usize, record: Arc<Record>) {
    let mut kv = client.kv();
    let key = Bytes::from(format!("{PREFIX}w{}/{:03}", fastrand::usize(..WRITERS), fastrand::usize(..KEYS)));
    match fastrand::u32(..20) {
        0 => {
            let put = PutRequest { key: format!("{PREFIX}r{number}").into(), ..Default::default() };
            let status = kv.put(put).await.expect_err("a reader writes");
            if status.code() == Code::PermissionDenied {
                record.count("denied", Ok(()));
            } else {
                record.count::<()>("denied", Err(status));
            }
        }
        1 => {
            let (key, range_end) = everything();
            let range = RangeRequest { key, range_end, limit: 100, ..Default::default() };
            record.count("range", kv.range(range).await);
        }
        2..10 => {
            record.count("range", kv.range(RangeRequest { key, ..Default::default() }).await);
        }
        _ => {
            let range = RangeRequest { key, serializable: true, ..Default::default() };
            record.count("serializable", kv.range(range).await);
        }
    }
}

/// A lease with a key, renewed for a while, then revoked or left to expire.
pub async fn hold_a_lease(client: Client, number: usize, ttl: Range<i64>, record: Arc<Record>) {
    let ttl = fastrand::i64(ttl);
    let (mut lease, mut kv) = (client.lease(), client.kv());
    let mut renewed = Instant::now();
    let Some(granted) = record.count("lease", lease.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await) else {
        return;
    };
    let id = granted.into_inner().id;
    let key = Bytes::from(format!("{PREFIX}lease/{number}"));
    let put = PutRequest { key: key.clone(), lease: id, ..Default::default() };
    if record.count("put", kv.put(put).await).is_none() {
        record.count("revoke", lease.lease_revoke(LeaseRevokeRequest { id }).await);
        return;
    }
    let is_there = async || {
        let range = RangeRequest { key: key.clone(), ..Default::default() };
        let answer = record.count("range", client.kv().range(range).await)?.into_inner();
        Some(answer.kvs.iter().any(|kv| kv.lease == id))
    };
    let life = Duration::from_secs_f64(ttl as f64);
    let (requests, receiver) = mpsc::channel(4);
    let mut stream = lease.clone();
    let mut answers = Answers::new(async move { stream.lease_keep_alive(ReceiverStream::new(receiver)).await });
    for _ in 0..fastrand::u32(2..6) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(300..1500))).await;
        let begun = Instant::now();
        if requests.send(LeaseKeepAliveRequest { id }).await.is_err() {
            break;
        }
        match tokio::time::timeout(life, answers.message()).await {
            Ok(Ok(Some(answer))) => {
                record.count("renewal", Ok(()));
                let early = answer.ttl <= 0 && renewed.elapsed() < life;
                record.must(!early, || format!("lease {id} of {ttl} s ended after {:?}", renewed.elapsed()));
                if answer.ttl <= 0 {
                    return;
                }
                renewed = begun;
            }
            ended => {
                record.count::<()>("renewal", Err(Status::unavailable(format!("{ended:?}"))));
                break;
            }
        }
        let there = is_there().await;
        let early = there == Some(false) && renewed.elapsed() < life;
        record.must(!early, || format!("key of lease {id} of {ttl} s went after {:?}", renewed.elapsed()));
    }
    if fastrand::bool() {
        if record.count("revoke", lease.lease_revoke(LeaseRevokeRequest { id }).await).is_some() {
            let there = is_there().await;
            record.must(there != Some(true), || format!("key of lease {id}, which was revoked"));
        }
        return;
    }
    let begun = Instant::now();
    while is_there().await != Some(false) {
        // Twice the time, and what elections may add.
        let late = begun.elapsed() > life * 2 + Duration::from_secs(60);
        record.must(!late, || format!("lease {id} of {ttl} s is there after {:?}", begun.elapsed()));
        if late {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    record.count("expiry", Ok(()));
}

/// Compacts to where the store was some compactions ago.
pub async fn compact(root: Client, ring: Arc<Mutex<Vec<i64>>>, record: Arc<Record>) {
    let range = RangeRequest { key: "x".into(), ..Default::default() };
    let Some(now) = record.count("range", root.kv().range(range).await) else { return };
    let revision = {
        let mut ring = ring.lock();
        ring.push(revision(now.into_inner().header));
        if ring.len() <= KEPT {
            return;
        }
        ring.remove(0)
    };
    record.count("compaction", root.kv().compact(CompactionRequest { revision, physical: false }).await);
}

/// New connections, one by certificate and one with a login, and watches on both that end after their first events.
pub async fn come_and_go(endpoints: Vec<String>, certificates: Arc<Certificates>, record: Arc<Record>) {
    let named = Client::connect(by_certificate(&endpoints, certificates.tls("load"))).expect("a client");
    let with_password = logged_in(&endpoints, certificates.tls("nameless"), "load");
    if record.count("login", with_password.login().await).is_none() {
        return;
    }
    for client in [named, with_password] {
        let (key, range_end) = everything();
        let range = RangeRequest { key: key.clone(), range_end: range_end.clone(), limit: 1, ..Default::default() };
        let Some(answer) = record.count("connection", client.kv().range(range).await) else { return };
        // A little in the past: the first events come from the store.
        let start_revision = (revision(answer.into_inner().header) - 20).max(1);
        let (requests, receiver) = mpsc::channel(16);
        let mut watch = client.watch();
        let mut answers = Answers::new(async move { watch.watch(ReceiverStream::new(receiver)).await });
        for _ in 0..5 {
            let (key, range_end) = (key.clone(), range_end.clone());
            let create = WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
            let union = Some(watch_request::RequestUnion::CreateRequest(create));
            requests.send(WatchRequest { request_union: union }).await.expect("room");
        }
        let mut first = std::collections::BTreeSet::new();
        let seen = tokio::time::timeout(Duration::from_secs(20), async {
            while first.len() < 5 {
                let answer = answers.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
                if !answer.events.is_empty() {
                    first.insert(answer.watch_id);
                }
            }
            Ok(())
        });
        let seen = seen.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no events in 20 s")));
        record.count("watch", seen);
    }
}
