//! Events on their way to many streams, for `benches/hot_paths.py`.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use prost::Message;
use tokio::time::Instant;

use super::handle::WatcherSetHandle;
use super::send_queue::Taken;
use super::watcher_set::{Create, JobResult};
use super::*;
use crate::pb::encoded::WireEncode;
use crate::pb::mvccpb::KeyValue;
use crate::telemetry::{Metrics, WatchMetrics};
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

const STREAMS: usize = 100;
const PUTS: i64 = 10;

/// Nothing is read from it: the log holds all events.
struct Nothing;

impl History for Nothing {
    fn events(&self, request: HistoryRequest) -> BoxFuture<'static, JobResult> {
        async move { panic!("events from {:?} are not in the log", request.from) }.boxed()
    }
}

fn batch(revision: i64) -> Arc<LogBatch> {
    let kv = KeyValue { key: "k".into(), value: vec![b'v'; 256].into(), mod_revision: revision, ..Default::default() };
    let event = LogEvent::new(EventKind::Put, "k".into(), kv.encode_to_vec().into(), None);
    Arc::new(LogBatch::new(Revision(revision), vec![event]))
}

/// A set with one watcher on each stream.
fn watched(source: &Arc<Source>) -> (WatcherSetHandle, Vec<u32>) {
    let limits = WatchLimits {
        stream_bytes_max: 1 << 20,
        stream_responses_max: 64,
        catch_up_revisions_max: 100,
        catch_up_bytes_max: 1 << 20,
        set_bytes_max: 1 << 30,
        history_reads_max: 1,
        fragment_bytes: usize::MAX,
        progress_interval: Some(Duration::from_secs(600)),
    };
    let header = Arc::new(HeaderSource::new(ClusterId(1), MemberId(2), Term(3)));
    let set = WatcherSetHandle::new(limits, header, WatchMetrics::register(&Metrics::default()), 7);
    let now = Instant::now();
    let streams: Vec<u32> = (0..STREAMS).map(|_| set.lock().open(false, now)).collect();
    for &stream in &streams {
        let create = Create {
            range: KeyRange::One("k".into()),
            watch_id: 0,
            start: Revision(0),
            prev_kv: false,
            filters: Filters { no_put: false, no_delete: false },
            progress_notify: false,
            fragment: false,
        };
        let admission = Admission {
            source: source.clone(),
            after: Revision(1),
            compacted: Revision(0),
            permission: None,
            held: None,
        };
        set.lock().create(stream, &create, &admission, now);
    }
    (set, streams)
}

/// Lets all streams take what there is; tells how many events they took.
fn drain(set: &WatcherSetHandle, streams: &[u32], message: &mut Vec<u8>) -> u64 {
    loop {
        let mut set = set.lock();
        if !(set.route() | set.resume()) {
            break;
        }
    }
    let mut taken = 0;
    for &stream in streams {
        while let Taken::Response { response, events } = set.pop(stream, Waker::noop()) {
            message.clear();
            response.write(message);
            taken += u64::from(events);
        }
    }
    taken
}

#[inline(never)]
fn counted(source: &Source, set: &WatcherSetHandle, streams: &[u32], batches: Vec<Arc<LogBatch>>) -> u64 {
    let mut message = Vec::with_capacity(1024);
    let mut taken = 0;
    for batch in batches {
        source.log().append([batch]);
        taken += drain(set, streams, &mut message);
    }
    taken
}

#[test]
fn watch_fan_out() {
    let source = Source::new(EventLog::new(Revision(1), 1 << 20), Arc::new(Nothing));
    let (set, streams) = watched(&source);
    assert_eq!(drain(&set, &streams, &mut Vec::new()), 0, "only that they are created");
    let batches = (2..2 + PUTS).map(batch).collect();
    assert_eq!(counted(&source, &set, &streams, batches), STREAMS as u64 * PUTS as u64);
}
