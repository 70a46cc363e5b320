//! What one hostile connection costs the server, and what a well-behaved client sees meanwhile.
//!
//! Every attack is frames that no client library sends, written for as long as the server takes them. It must not cost more
//! memory than a bound, and another client must be served. `just attacks` runs the same longer, against release builds, and
//! prints the table of docs/reliability.md: `WATERSHED_ATTACK_SECONDS` is the length of each attack, `WATERSHED_TEST_BINARY`
//! the build, and `WATERSHED_TEST_SERVER` a stock etcd in place of the member.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest, WatchCreateRequest, WatchRequest};

use crate::harness::{
    Deployment, Process, Share, Target, cancel_frame, data_frame, frame, grpc_headers, grpc_message, is_stock, run,
};

/// Length of an attack in the usual tests.
const USUAL_SECONDS: f64 = 0.7;
/// Puts of the well-behaved client, one at a time.
const PUT_PAUSE: Duration = Duration::from_millis(5);
/// A value whose answer is one that is encoded whole.
const VALUE_BYTES: usize = 60_000;
/// Keys with such a value.
const KEYS: usize = 16;

const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// One way to attack.
struct Attack {
    name: &'static str,
    /// The payload of the SETTINGS frame: none for windows that are never full.
    settings: &'static [u8],
    /// Whether answers are read.
    reads: bool,
    /// Memory that it may cost, in MB. A debug build on a busy machine stays below.
    memory_mb: u64,
    /// Sent once.
    first: fn() -> Vec<u8>,
    /// Sent again and again, with a number that grows.
    burst: fn(u32) -> Vec<u8>,
}

/// SETTINGS_INITIAL_WINDOW_SIZE: as large as can be, and 0.
const WIDE: &[u8] = &[0, 4, 0x7f, 0xff, 0xff, 0xff];
const SHUT: &[u8] = &[0, 4, 0, 0, 0, 0];

fn nothing() -> Vec<u8> {
    Vec::new()
}

/// So many of one frame.
fn repeated(frame: &[u8]) -> Vec<u8> {
    frame.repeat((16 * 1024 / frame.len()).max(1))
}

/// So many streams in one burst, each by `frames`.
fn streams(burst: u32, frames: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    const STREAMS: u32 = 64;
    (burst * STREAMS..(burst + 1) * STREAMS).flat_map(|number| frames(2 * number + 1)).collect()
}

/// A call with one message.
fn call(stream: u32, path: &str, message: &impl prost::Message) -> Vec<u8> {
    [grpc_headers(stream, path, &[], false), data_frame(stream, &grpc_message(message), true)].concat()
}

/// A range with an answer of [`VALUE_BYTES`].
fn range(stream: u32) -> Vec<u8> {
    let key = format!("large/{:04}", stream as usize / 2 % KEYS).into();
    call(stream, RANGE, &RangeRequest { key, ..Default::default() })
}

/// A watch of everything that ever happened.
fn old_watch(stream: u32) -> Vec<u8> {
    let create = WatchCreateRequest {
        key: "large/".into(),
        range_end: "large0".into(),
        start_revision: 1,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    [grpc_headers(stream, WATCH, &[], false), data_frame(stream, &grpc_message(&request), false)].concat()
}

/// A put of zeros, compressed a thousandfold.
fn bomb(stream: u32) -> Vec<u8> {
    static ZEROS: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let put = PutRequest { key: "bomb".into(), value: vec![0; 64 << 20].into(), ..Default::default() };
        let mut encoder = GzEncoder::new(vec![1, 0, 0, 0, 0], Compression::best());
        encoder.write_all(&prost::Message::encode_to_vec(&put)).expect("memory");
        let mut framed = encoder.finish().expect("memory");
        let length = framed.len() as u32 - 5;
        framed[1..5].copy_from_slice(&length.to_be_bytes());
        framed
    });
    let mut call = grpc_headers(stream, PUT, &[("grpc-encoding", b"gzip")], false);
    let pieces: Vec<_> = ZEROS.chunks(16 * 1024).collect();
    for (number, piece) in pieces.iter().enumerate() {
        call.extend(data_frame(stream, piece, number + 1 == pieces.len()));
    }
    call
}

/// A header field of 4,000 bytes put into the table, for [`references`].
fn table_entry() -> Vec<u8> {
    let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
    block.extend([b'y'; 4_000]);
    let mut head = grpc_headers(1, PUT, &[], true);
    head.extend(block);
    let length = (head.len() - 9) as u32;
    head[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    head
}

/// A head that names the entry 8,000 times: 32 MB of fields in 8 kB.
fn references(burst: u32) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x84];
    block.extend([0xbe; 8_000]);
    frame(1, END_HEADERS | 1, 2 * burst + 3, &block)
}

const FRAMES: [Attack; 13] = [
    Attack {
        name: "rapid reset",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: nothing,
        burst: |burst| streams(burst, |stream| [grpc_headers(stream, PUT, &[], false), cancel_frame(stream)].concat()),
    },
    Attack {
        name: "resets made by the server (WINDOW_UPDATE 0)",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: nothing,
        burst: |burst| {
            streams(burst, |stream| [grpc_headers(stream, PUT, &[], false), frame(8, 0, stream, &[0; 4])].concat())
        },
    },
    Attack {
        name: "CONTINUATION of 8 kB without end",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: || frame(1, 0, 1, &[0x83]),
        burst: |_| {
            repeated(&frame(CONTINUATION, 0, 1, &[&[0, 1, b'a', 0x7f, 0xc1, 0x3d][..], &[b'b'; 8_000]].concat()))
        },
    },
    Attack {
        name: "empty CONTINUATION",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: || frame(1, 0, 1, &[0x83]),
        burst: |_| repeated(&frame(CONTINUATION, 0, 1, &[])),
    },
    Attack {
        name: "empty DATA",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: || grpc_headers(1, PUT, &[], false),
        burst: |_| repeated(&frame(0, 0, 1, &[])),
    },
    Attack {
        name: "HPACK references",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: table_entry,
        burst: references,
    },
    Attack {
        name: "PING, answers read",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: nothing,
        burst: |_| repeated(&frame(6, 0, 0, &[7; 8])),
    },
    Attack {
        name: "PING, answers not read",
        settings: WIDE,
        reads: false,
        memory_mb: 160,
        first: nothing,
        burst: |_| repeated(&frame(6, 0, 0, &[7; 8])),
    },
    Attack {
        name: "SETTINGS, answers read",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: nothing,
        burst: |_| repeated(&frame(4, 0, 0, WIDE)),
    },
    Attack {
        name: "SETTINGS, answers not read",
        settings: WIDE,
        reads: false,
        memory_mb: 160,
        first: nothing,
        burst: |_| repeated(&frame(4, 0, 0, WIDE)),
    },
    Attack {
        name: "PRIORITY",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: nothing,
        burst: |burst| repeated(&frame(2, 0, 2 * burst + 1, &[0, 0, 0, 0, 9])),
    },
    Attack {
        name: "WINDOW_UPDATE of 1",
        settings: &[0, 4, 0, 0, 0, 0],
        reads: true,
        memory_mb: 160,
        first: || range(1),
        burst: |_| repeated(&frame(8, 0, 1, &[0, 0, 0, 1])),
    },
    Attack {
        name: "frames of unknown kinds",
        settings: WIDE,
        reads: true,
        memory_mb: 160,
        first: nothing,
        burst: |_| repeated(&frame(0xf0, 0, 0, &[1; 64])),
    },
];

const ANSWERS: [Attack; 5] = [
    Attack {
        name: "ranges of 60 kB, windows shut",
        settings: SHUT,
        reads: true,
        memory_mb: 480,
        first: nothing,
        burst: |burst| streams(burst, range),
    },
    Attack {
        name: "ranges of 60 kB, nothing read",
        settings: WIDE,
        reads: false,
        memory_mb: 480,
        first: nothing,
        burst: |burst| streams(burst, range),
    },
    Attack {
        name: "watches from revision 1, windows shut",
        settings: SHUT,
        reads: true,
        memory_mb: 320,
        first: nothing,
        burst: |burst| streams(burst, old_watch),
    },
    Attack {
        name: "watches from revision 1, nothing read",
        settings: WIDE,
        reads: false,
        memory_mb: 320,
        first: nothing,
        burst: |burst| streams(burst, old_watch),
    },
    Attack {
        name: "messages of 64 MB in 64 kB of gzip",
        settings: WIDE,
        reads: true,
        memory_mb: 480,
        first: nothing,
        burst: |burst| bomb(2 * burst + 1),
    },
];

#[test]
fn floods_of_frames_on_the_core() {
    attacked(Target::Core, &FRAMES);
}

#[test]
fn floods_of_frames_on_the_proxy() {
    attacked(Target::Proxy, &FRAMES);
}

#[test]
fn answers_not_taken_from_the_core() {
    attacked(Target::Core, &ANSWERS);
}

#[test]
fn answers_not_taken_from_the_proxy() {
    attacked(Target::Proxy, &ANSWERS);
}

fn attacked(target: Target, attacks: &[Attack]) {
    // Whoever shares the processors with a test that takes all of them is late: the proxy then cuts its connections.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let _share = runtime.block_on(Share::of(6));
    run(target, &[], async |deployment: &mut Deployment| {
        for round in 0..40 {
            for key in 0..KEYS / 8 {
                deployment.put(format!("large/{:04}", key + round * 2 % KEYS), vec![b'v'; VALUE_BYTES]).await;
            }
        }
        let mut over = Vec::new();
        for attack in attacks {
            let seen = observed(deployment, attack).await;
            println!("| {:?} | {} | {} |", target, attack.name, seen.row());
            if seen.grown_mb > attack.memory_mb {
                over.push((attack.name, seen.grown_mb, attack.memory_mb));
            }
        }
        assert!(is_stock() || over.is_empty(), "MB more, and the bound: {over:?}");
    });
}

/// What came of an attack.
struct Observed {
    end: &'static str,
    sent_mb: f64,
    before_mb: u64,
    grown_mb: u64,
    cores: f64,
    puts: Vec<Duration>,
}

impl Observed {
    fn row(&self) -> String {
        let mut puts = self.puts.clone();
        puts.sort_unstable();
        let p99 = puts[(puts.len() * 99 / 100).min(puts.len() - 1)].as_secs_f64() * 1e3;
        let Self { end, sent_mb, before_mb, grown_mb, cores, .. } = self;
        format!("{end} | {sent_mb:.1} | {before_mb} | {grown_mb} | {cores:.2} | {p99:.1} ({})", puts.len())
    }
}

async fn observed(deployment: &Deployment, attack: &Attack) -> Observed {
    let process = match deployment.target {
        Target::Proxy => deployment.front.as_ref().expect("a proxy"),
        _ => &deployment.server,
    };
    let seconds =
        std::env::var("WATERSHED_ATTACK_SECONDS").ok().map_or(USUAL_SECONDS, |text| text.parse().expect("seconds"));
    let limit = Duration::from_secs_f64(seconds);
    // From here on the kernel counts the peak anew.
    fs::write(format!("/proc/{}/clear_refs", process.id()), "5").expect("a process of this user");
    let (before_mb, cpu_before, began) = (memory_mb(process, "VmRSS:"), cpu_seconds(process), Instant::now());
    let mut puts = Vec::new();
    let well_behaved = async {
        loop {
            let began = Instant::now();
            deployment.put("well-behaved", "v").await;
            puts.push(began.elapsed());
            tokio::time::sleep(PUT_PAUSE).await;
        }
    };
    let (end, sent) = tokio::select! {
        outcome = run_attack(&deployment.endpoint, attack, limit) => outcome,
        () = well_behaved => unreachable!("never ends"),
    };
    let cores = (cpu_seconds(process) - cpu_before) / began.elapsed().as_secs_f64();
    let grown_mb = memory_mb(process, "VmHWM:").saturating_sub(before_mb);
    // Whatever the attack was, others are served after it.
    let last = Instant::now();
    deployment.put("well-behaved", "v").await;
    puts.push(last.elapsed());
    Observed { end, sent_mb: sent as f64 / 1e6, before_mb, grown_mb, cores, puts }
}

/// Attacks for as long as `limit`, whether the server takes it or not; how it ended and the bytes that were sent.
async fn run_attack(endpoint: &str, attack: &Attack, limit: Duration) -> (&'static str, usize) {
    let stream = TcpStream::connect(endpoint).await.expect("connects");
    let (mut reader, mut writer) = stream.into_split();
    let deadline = tokio::time::Instant::now() + limit;
    let mut sent = 0;
    let writing = async {
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, attack.settings)].concat();
        let window = frame(8, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes());
        let acknowledged = frame(4, 1, 0, &[]);
        let mut bytes = [hello, window, acknowledged, (attack.first)()].concat();
        for burst in 0.. {
            if writer.write_all(&bytes).await.is_err() {
                return "closed";
            }
            sent += bytes.len();
            bytes = (attack.burst)(burst);
            // The other client has its turns on this thread.
            tokio::task::yield_now().await;
        }
        "sent"
    };
    let reading = async {
        if !attack.reads {
            std::future::pending::<()>().await;
        }
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(1..) = reader.read(&mut buffer).await {}
    };
    let end = tokio::time::timeout_at(deadline, async {
        tokio::select! {
            end = writing => end,
            () = reading => "closed",
        }
    })
    .await;
    let end = end.unwrap_or("taken");
    // What is held for the client stays held until the end.
    tokio::time::sleep_until(deadline).await;
    (end, sent)
}

fn memory_mb(process: &Process, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

fn cpu_seconds(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("a running process");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / 100.0
}
