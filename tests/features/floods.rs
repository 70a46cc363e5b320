//! Bursts of ordinary clients are served on the connection they came on; floods cost the server little.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::{
    LeaseKeepAliveRequest, PutRequest, WatchCancelRequest, WatchCreateRequest, WatchRequest,
};

use crate::harness::{
    Deployment, Process, RawHttp2, Target, cancel_frame, data_frame, frame, grpc_headers, grpc_message, soon,
};
use crate::on_every_target;

on_every_target! {
    a_burst_of_keep_alives_is_answered,
    watches_may_be_created_and_cancelled_in_a_pipeline,
    calls_cancelled_during_a_stall_cut_nobody_off,
    refused_uploads_cut_nobody_off,
    rapid_resets_are_bounded,
    calls_whose_answers_are_not_read_are_bounded,
    unfinished_requests_cost_what_has_arrived,
    single_bytes_cost_bytes,
}

const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const PUT: &str = "/etcdserverpb.KV/Put";

/// Memory that a flood may cost a process. A debug build on a busy machine stays far below.
const FLOOD_MEMORY_MB: u64 = 96;

/// What answers on the endpoint: HTTP/2 ends there.
fn server(deployment: &Deployment) -> &Process {
    match deployment.target {
        Target::Proxy => deployment.front.as_ref().expect("a proxy"),
        _ => &deployment.server,
    }
}

/// Resident memory in MB.
fn resident(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// Stops a process for a moment, as a busy machine does: what arrives meanwhile is there at once then.
async fn stall(process: &Process) {
    process.signal(Signal::STOP);
    tokio::time::sleep(Duration::from_millis(500)).await;
    process.signal(Signal::CONT);
}

async fn served_on_the_same_connection(deployment: &Deployment, raw: &RawHttp2, stream: u32) {
    assert!(raw.alive().await, "cut off: {:?}", raw.wait("", |seen| Some(seen.goaway.clone())).await);
    let put = grpc_message(&PutRequest { key: "after".into(), ..Default::default() });
    raw.write(&[grpc_headers(stream, PUT, &[], false), data_frame(stream, &put, true)].concat()).await;
    raw.wait("the answer to a put", |seen| seen.ended.contains(&stream).then_some(())).await;
    assert_eq!(deployment.get("after").await.count, 1);
}

async fn a_burst_of_keep_alives_is_answered(deployment: &mut Deployment) {
    // HTTP/2 counts the overhead of small frames that no handler has taken yet, and ends the connection beyond a budget.
    // Frames were read as long as the socket had any, so that a burst was counted before its handler ran once.
    const COUNT: usize = 30_000;
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    raw.write(&grpc_headers(1, KEEP_ALIVE, &[], false)).await;
    let burst = async {
        for number in 0..COUNT {
            // Ids as clients have them, of leases that nobody granted: the answer is a TTL of zero.
            let id = i64::MAX / 2 + number as i64;
            assert!(raw.data(1, &grpc_message(&LeaseKeepAliveRequest { id })).await, "cut off after {number}");
        }
    };
    tokio::join!(burst, stall(server(deployment)));
    raw.wait("all answers", |seen| {
        assert_eq!(seen.goaway, None);
        (seen.messages(1).len() == COUNT).then_some(())
    })
    .await;
    served_on_the_same_connection(deployment, &raw, 3).await;
}

async fn watches_may_be_created_and_cancelled_in_a_pipeline(deployment: &mut Deployment) {
    // As above; here the burst is one of watches that are given up before they were created.
    const COUNT: i64 = 12_000;
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    raw.write(&grpc_headers(1, WATCH, &[], false)).await;
    let create = |number: i64| {
        let request = WatchCreateRequest { key: format!("k{number}").into(), watch_id: number, ..Default::default() };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
    };
    let cancel =
        |watch_id| WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) };
    let burst = async {
        for request in (1..=COUNT).map(create).chain((1..=COUNT).map(cancel)) {
            assert!(raw.data(1, &grpc_message(&request)).await, "cut off");
        }
    };
    tokio::join!(burst, stall(server(deployment)));
    raw.wait("all answers", |seen| {
        assert_eq!(seen.goaway, None);
        (seen.messages(1).len() as i64 == 2 * COUNT).then_some(())
    })
    .await;
    raw.write(&cancel_frame(1)).await;
    served_on_the_same_connection(deployment, &raw, 3).await;
}

async fn calls_cancelled_during_a_stall_cut_nobody_off(deployment: &mut Deployment) {
    // Calls that time out while the server stands still are cancelled before it has read them; 64 of those were
    // allowed at once.
    const CALLS: u32 = 1_000;
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    let put = grpc_message(&PutRequest { key: "k".into(), value: "v".into(), ..Default::default() });
    server(deployment).signal(Signal::STOP);
    for call in 0..CALLS {
        let stream = 2 * call + 1;
        raw.write(&[grpc_headers(stream, PUT, &[], false), data_frame(stream, &put, true)].concat()).await;
    }
    for call in 0..CALLS {
        raw.write(&cancel_frame(2 * call + 1)).await;
    }
    server(deployment).signal(Signal::CONT);
    served_on_the_same_connection(deployment, &raw, 2 * CALLS + 1).await;
}

async fn refused_uploads_cut_nobody_off(deployment: &mut Deployment) {
    // What arrives for a stream that was answered early counts as an error of this side, and 1,024 of those in the
    // life of a connection ended it.
    const CALLS: u32 = 2_000;
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    let announced = [&[0][..], &5_000_000_u32.to_be_bytes()].concat();
    for call in 0..CALLS {
        let stream = 2 * call + 1;
        raw.write(&[grpc_headers(stream, WATCH, &[], false), data_frame(stream, &announced, false)].concat()).await;
    }
    raw.wait("all refusals", |seen| {
        assert_eq!(seen.goaway, None);
        (seen.ended.len() as u32 == CALLS).then_some(())
    })
    .await;
    for call in 0..CALLS {
        raw.write(&data_frame(2 * call + 1, b"the rest", false)).await;
    }
    served_on_the_same_connection(deployment, &raw, 2 * CALLS + 1).await;
}

async fn rapid_resets_are_bounded(deployment: &mut Deployment) {
    const CALLS: u32 = 50_000;
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    let before = resident(server(deployment));
    for calls in (0..CALLS).collect::<Vec<_>>().chunks(100) {
        let frames = calls.iter().flat_map(|call| {
            let stream = 2 * call + 1;
            [grpc_headers(stream, PUT, &[], false), cancel_frame(stream)].concat()
        });
        raw.write(&frames.collect::<Vec<_>>()).await;
    }
    // Others are served meanwhile.
    soon("a put of another client", deployment.put("k", "v")).await;
    raw.alive().await;
    let grown = resident(server(deployment)).saturating_sub(before);
    println!("{CALLS} resets: {grown} MB");
    assert!(grown < FLOOD_MEMORY_MB, "{grown} MB more");
}

async fn calls_whose_answers_are_not_read_are_bounded(deployment: &mut Deployment) {
    // Nothing but the client's reading bounded how many answers were kept for it.
    let mut stream = tokio::net::TcpStream::connect(&deployment.endpoint).await.expect("connects");
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    hello.extend(frame(4, 0, 0, &[]));
    let write = async |stream: &mut tokio::net::TcpStream, bytes: &[u8]| {
        use tokio::io::AsyncWriteExt;
        tokio::time::timeout(Duration::from_secs(2), stream.write_all(bytes)).await.is_ok_and(|written| written.is_ok())
    };
    write(&mut stream, &hello).await;
    let path = format!("/foo.Bar/{}", "z".repeat(1_000));
    let before = resident(server(deployment));
    for call in 0..60_000 {
        // The server may hang up or stop reading.
        if !write(&mut stream, &grpc_headers(2 * call + 1, &path, &[], true)).await {
            break;
        }
    }
    soon("a put of another client", deployment.put("k", "v")).await;
    let grown = resident(server(deployment)).saturating_sub(before);
    println!("answers not read: {grown} MB");
    assert!(grown < FLOOD_MEMORY_MB, "{grown} MB more");
}

async fn unfinished_requests_cost_what_has_arrived(deployment: &mut Deployment) {
    // The gRPC library reserves what the head of a message announces, and the allocator had it backed by huge pages:
    // 60 kB of input held 3 GB.
    const CALLS: u32 = 2_000;
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    let before = resident(server(deployment));
    let start = [&[0][..], &1_572_800_u32.to_be_bytes(), b"x"].concat();
    for path in [PUT, WATCH] {
        for call in 0..CALLS {
            let stream = 2 * call + if path == PUT { 1 } else { 2 * CALLS + 1 };
            raw.write(&[grpc_headers(stream, path, &[], false), data_frame(stream, &start, false)].concat()).await;
        }
        assert!(raw.alive().await, "cut off");
        let grown = resident(server(deployment)).saturating_sub(before);
        println!("{CALLS} unfinished calls of {path}: {grown} MB");
        assert!(grown < FLOOD_MEMORY_MB, "{grown} MB more");
    }
}

async fn single_bytes_cost_bytes(deployment: &mut Deployment) {
    // A message in DATA frames of one byte each is slow, but no reason to hang up, nor to hold more than its bytes.
    const BYTES: usize = 100_000;
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    let before = resident(server(deployment));
    raw.write(&grpc_headers(1, PUT, &[], false)).await;
    let start = [&[0][..], &1_572_800_u32.to_be_bytes()].concat();
    for byte in start.iter().chain(&vec![b'x'; BYTES]) {
        if !raw.data(1, &[*byte]).await {
            break; // The library may end it, as long as others are served.
        }
    }
    soon("a put of another client", deployment.put("k", "v")).await;
    let grown = resident(server(deployment)).saturating_sub(before);
    println!("{BYTES} single bytes: {grown} MB");
    assert!(grown < FLOOD_MEMORY_MB / 4, "{grown} MB more");
}
