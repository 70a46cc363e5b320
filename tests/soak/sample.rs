use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use watershed::net::ClientTls;

use crate::harness::{Cluster, https};

/// What is measured of a member.
pub const COLUMNS: [&str; 15] = [
    "rss_kb",
    "anon_kb",
    "descriptors",
    "threads",
    "open_calls",
    "watch_streams",
    "watchers",
    "leases",
    "keys",
    "db_kb",
    "wal_kb",
    "data_kb",
    "files",
    "revision",
    "cpu_s",
];

/// One member at one time.
pub struct Sample {
    pub member: usize,
    /// Since the begin of the run.
    pub seconds: f64,
    /// Since its process was started.
    pub age: f64,
    pub values: [f64; COLUMNS.len()],
}

impl Sample {
    pub fn value(&self, column: &str) -> f64 {
        let at = COLUMNS.iter().position(|name| *name == column).expect("a column");
        self.values[at]
    }
}

/// Measures the members and writes it down.
pub struct Sampler {
    begun: Instant,
    /// Process and the time of its first sample, for each member.
    processes: Vec<(u32, Instant)>,
    tls: ClientTls,
    csv: File,
    pub samples: Vec<Sample>,
}

impl Sampler {
    pub fn new(folder: &Path, tls: ClientTls) -> Self {
        let mut csv = File::create(folder.join("samples.csv")).expect("created");
        writeln!(csv, "seconds,member,age_s,{}", COLUMNS.join(",")).expect("written");
        Self { begun: Instant::now(), processes: vec![(0, Instant::now()); 3], tls, csv, samples: Vec::new() }
    }

    /// A line beside the samples.
    pub fn note(&self, text: &str) {
        println!("{:8.1} {text}", self.begun.elapsed().as_secs_f64());
    }

    /// One sample of each member.
    pub async fn take(&mut self, cluster: &Cluster) {
        for member in 0..3 {
            let process = cluster.process(member).id();
            if self.processes[member].0 != process {
                self.processes[member] = (process, Instant::now());
            }
            let age = self.processes[member].1.elapsed().as_secs_f64();
            // Whatever it is busy with, it is measured; a page that does not come is missing in this sample.
            let page = https(cluster.endpoint(member), Some(&self.tls), "GET", "/metrics", "").await;
            let Ok((200, page)) = page else {
                self.note(&format!("no metrics of {member}: {page:?}"));
                continue;
            };
            let values = measure(process, &cluster.data_dir(member), &page);
            let seconds = self.begun.elapsed().as_secs_f64();
            let shown: Vec<String> = values.iter().map(f64::to_string).collect();
            writeln!(self.csv, "{seconds:.1},{member},{age:.1},{}", shown.join(",")).expect("written");
            self.samples.push(Sample { member, seconds, age, values });
        }
    }
}

fn measure(process: u32, data_dir: &Path, page: &str) -> [f64; COLUMNS.len()] {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).expect("a running process");
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field");
        line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok()).expect("a number")
    };
    let entries = |name: &str| std::fs::read_dir(format!("/proc/{process}/{name}")).expect("there").count() as f64;
    // Series with this name, whatever their labels.
    let sum = |name: &str| -> f64 {
        let of = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit_once(' ')?.1.parse().ok()).flatten()
        };
        page.lines().filter_map(of).sum()
    };
    let stat = read("stat");
    let after_name: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: f64 = after_name[11..13].iter().map(|ticks| ticks.parse::<f64>().expect("ticks")).sum();
    let mut sizes = Sizes::default();
    sizes.add(data_dir);
    [
        field("VmRSS:"),
        field("RssAnon:"),
        entries("fd"),
        entries("task"),
        sum("grpc_server_started_total") - sum("grpc_server_handled_total"),
        sum("etcd_debugging_mvcc_watch_stream_total"),
        sum("etcd_debugging_mvcc_watcher_total"),
        sum("etcd_debugging_lease_granted_total") - sum("etcd_debugging_lease_revoked_total"),
        sum("etcd_debugging_mvcc_keys_total"),
        sizes.db / 1024.0,
        sizes.wal / 1024.0,
        sizes.all / 1024.0,
        sizes.files,
        sum("etcd_debugging_mvcc_current_revision"),
        ticks / rustix::param::clock_ticks_per_second() as f64,
    ]
}

/// Bytes of the files in a data directory.
#[derive(Default)]
struct Sizes {
    db: f64,
    wal: f64,
    all: f64,
    files: f64,
}

impl Sizes {
    fn add(&mut self, folder: &Path) {
        // Files come and go meanwhile.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            if meta.is_dir() {
                self.add(&path);
                continue;
            }
            let (bytes, extension) = (meta.len() as f64, path.extension().unwrap_or_default());
            self.all += bytes;
            self.files += 1.0;
            self.wal += if extension == "wal" { bytes } else { 0.0 };
            self.db += if path.file_name().is_some_and(|name| name == "db") { bytes } else { 0.0 };
        }
    }
}
