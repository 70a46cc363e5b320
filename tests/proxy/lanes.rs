//! Long answers that a client does not read hold up nobody else: watches, leases, calls and long answers each have connections
//! of their own to a member.

use tonic::{Code, Status, Streaming};
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    LeaseKeepAliveRequest, PutRequest, RangeRequest, RangeStreamResponse, SnapshotRequest, SnapshotResponse,
};

use super::{get, put, under};
use crate::harness::{Answers, Deployment, Target, Watching, client, run, soon};

const MIB: usize = 1024 * 1024;
const VALUES: usize = 100;
const UNREAD: usize = 1;

/// An answer of which nothing is read.
enum Unread {
    Stream(Streaming<RangeStreamResponse>),
    Snapshot(Streaming<SnapshotResponse>),
}

fn everything() -> RangeRequest {
    let create = under("large/");
    RangeRequest { key: create.key, range_end: create.range_end, ..Default::default() }
}

async fn stream(client: &Client) -> Result<Unread, Status> {
    let mut kv = client.kv();
    Ok(Unread::Stream(kv.range_stream(everything()).await?.into_inner()))
}

async fn snapshot(client: &Client) -> Result<Unread, Status> {
    Ok(Unread::Snapshot(client.maintenance().snapshot(SnapshotRequest {}).await?.into_inner()))
}

#[test]
fn answers_that_nobody_reads_hold_up_no_watch_no_lease_and_no_call() {
    let flags = ["--max-request-bytes=10485760", "--quota-backend-bytes=1073741824"];
    run(Target::Proxy, &flags, async |deployment: &mut Deployment| {
        // One after the other: a machine that is busy with other tests answers none of a hundred for seconds, and the proxy
        // cuts connections that are silent.
        for number in 0..VALUES {
            let value = vec![b'v'; MIB].into();
            let put = PutRequest { key: format!("large/{number}").into(), value, ..Default::default() };
            deployment.put_with(put).await;
        }
        let reader = client(&deployment.endpoint);
        let mut unread = Vec::new();
        for _ in 0..UNREAD {
            match soon("the beginning of an answer", stream(&reader)).await {
                Ok(answer) => unread.push(answer),
                // etcd before 3.7.
                Err(status) => assert_eq!(status.code(), Code::Unimplemented, "{status}"),
            }
            unread.push(soon("the beginning of an answer", snapshot(&reader)).await.expect("a snapshot"));
        }
        // On the connection of the reader, too.
        for client in [client(&deployment.endpoint), reader.clone()] {
            let (mut watching, created) = Watching::create(&client, under("small/")).await;
            assert!(!created.canceled, "{created:?}");
            let lease = deployment.grant(60).await;
            let mut leases = client.lease();
            let asked = tokio_stream::iter(vec![LeaseKeepAliveRequest { id: lease }; 100]);
            let mut kept = Answers::new(async move { leases.lease_keep_alive(asked).await });
            for _ in 0..200 {
                let revision = put(&client, "small/1").await;
                assert_eq!(watching.events(1).await, [format!("+small/1=v@{revision}")]);
                let read = client.kv().range(get("small/1")).await.expect("a read").into_inner();
                assert_eq!(read.kvs[0].mod_revision, revision);
            }
            for _ in 0..100 {
                assert!(soon("an answer", kept.message()).await.expect("no error").is_some());
            }
        }
        // They are whole when they are read after all.
        let mut bytes = 0;
        for answer in unread {
            match answer {
                Unread::Stream(mut answer) => {
                    while let Some(part) = soon("the rest", answer.message()).await.expect("no error") {
                        bytes += part.range_response.map_or(0, |part| part.kvs.iter().map(|kv| kv.value.len()).sum());
                    }
                }
                Unread::Snapshot(mut answer) => {
                    let mut snapshot = 0;
                    while let Some(part) = soon("the rest", answer.message()).await.expect("no error") {
                        snapshot += part.blob.len();
                    }
                    assert!(snapshot > VALUES * MIB, "{snapshot} bytes");
                }
            }
        }
        assert!(bytes == 0 || bytes == UNREAD * VALUES * MIB, "{bytes} bytes");
    });
}
