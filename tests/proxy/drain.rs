//! SIGTERM: what is in progress ends in order, within the time it is given.

use rustix::process::Signal;
use tonic::{Code, Status};
use watershed::pb::etcdserverpb::{LeaseKeepAliveRequest, PutRequest, RangeRequest, WatchCreateRequest};
use watershed::pb::v3lockpb::{LockRequest, UnlockRequest};

use super::{get, put};
use crate::harness::{Answers, Deployment, Process, Target, Watching, client, run, soon, until};

async fn until_ended(process: &mut Process) -> std::process::ExitStatus {
    until("the end of the proxy", || std::future::ready(process.ended())).await
}

/// How a stream of answers ends.
async fn end_of<T>(answers: &mut Answers<T>) -> Result<(), Status> {
    loop {
        match soon("the end of the stream", answers.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(status) => return Err(status),
        }
    }
}

#[test]
fn calls_in_progress_are_answered_and_streams_are_told() {
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let lease = deployment.grant(600).await;
        let held = deployment.member_client().lock().lock(LockRequest { name: "l".into(), lease }).await;
        let held = held.expect("the lock").into_inner().key;
        let (watching, _) =
            Watching::create(&deployment.client, WatchCreateRequest { key: "k".into(), ..Default::default() }).await;
        let mut watching = watching.half_close();
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        let mut leases = deployment.client.lease();
        let mut kept = Answers::new(async move {
            leases.lease_keep_alive(tokio_stream::wrappers::ReceiverStream::new(receiver)).await
        });
        requests.send(LeaseKeepAliveRequest { id: lease }).await.expect("sent");
        assert!(soon("an answer", kept.message()).await.expect("no error").is_some());
        let other = deployment.grant(600).await;
        let waiting = {
            let mut lock = deployment.client.lock();
            async move { lock.lock(LockRequest { name: "l".into(), lease: other }).await }
        };
        let stopping = async {
            until("the waiter's key", async || {
                let range = RangeRequest { range_end: "l0".into(), ..get("l/") };
                (deployment.member_client().kv().range(range).await.ok()?.into_inner().count == 2).then_some(())
            })
            .await;
            let front = deployment.front.as_mut().expect("a proxy");
            front.terminate();
            // Streams end with a status, at once: what they wait for may never come.
            for (what, end) in [("watch", end_of(&mut watching).await), ("keep-alives", end_of(&mut kept).await)] {
                let status = end.expect_err(what);
                assert_eq!(
                    (status.code(), status.message()),
                    (Code::Unavailable, "etcdserver: server stopped"),
                    "{what}"
                );
            }
            // The call that waits is answered when its turn comes.
            client(&deployment.member).lock().unlock(UnlockRequest { key: held }).await.expect("unlocked");
            until_ended(front).await
        };
        let (locked, status) = tokio::join!(soon("the lock", waiting), stopping);
        let locked = locked.expect("answered").into_inner();
        assert!(locked.key.starts_with(b"l/"), "{locked:?}");
        assert_eq!(status.code(), Some(0));
    });
}

#[test]
fn what_does_not_end_is_cut_when_the_time_is_over() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (mut front, endpoint) = deployment.also_front("grpc-proxy", &["--shutdown-grace=1s"]).await;
        let through = client(&endpoint);
        put(&through, "k").await;
        deployment.server.signal(Signal::STOP);
        let mut kv = through.kv();
        let hanging = kv.put(PutRequest { key: "k".into(), ..Default::default() });
        let (refusal, status) = tokio::join!(soon("an end", hanging), async {
            front.terminate();
            until_ended(&mut front).await
        });
        assert_eq!(status.code(), Some(0), "{}", front.output());
        let refusal = refusal.expect_err("nobody answered");
        assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
        deployment.server.signal(Signal::CONT);
    });
}
