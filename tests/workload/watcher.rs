use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use watershed::client::Client;
use watershed::pb::etcdserverpb::watch_create_request::FilterType;
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest};

use super::Recorder;
use crate::checkers::{WatchAnswer, WatchMessage, WatchRecord};
use crate::harness::Answers;

/// How often a watcher asks how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// A client that watches one range and goes on at another member when its stream breaks, and sometimes before.
pub struct Watcher {
    pub recorder: Arc<Recorder>,
    /// One client per member.
    pub members: Vec<Client>,
    /// Where it begins.
    pub member: usize,
    /// What it watches; the answers are filled in.
    pub wanted: WatchRecord,
    pub random: Rng,
    /// Revision up to which it must have seen everything before it ends; none while the load goes on.
    pub goal: watch::Receiver<Option<i64>>,
}

/// Why one watch ended.
enum End {
    /// Everything was seen.
    Goal,
    /// The stream broke or was left.
    Broken,
    /// What it wants next was compacted.
    Compacted(i64),
}

impl Watcher {
    /// Watches until the goal is reached.
    pub async fn run(mut self) {
        let id = self.recorder.client();
        let mut record = WatchRecord { client: id, ..self.wanted.clone() };
        loop {
            record.member = self.member as u32;
            let end = self.watch_once(&mut record).await;
            let through = through(&record);
            let mut next = WatchRecord { client: id, resumes: true, ..self.wanted.clone() };
            next.start_revision = through.map_or(self.wanted.start_revision, |through| through + 1);
            if let End::Compacted(revision) = end {
                next.start_revision = revision;
                next.resumes = false;
            }
            self.recorder.watched(std::mem::replace(&mut record, next));
            if matches!(end, End::Goal) {
                return;
            }
            self.member = (self.member + 1) % self.members.len();
        }
    }

    async fn watch_once(&mut self, record: &mut WatchRecord) -> End {
        let (requests, receiver) = mpsc::channel(16);
        let create = RequestUnion::CreateRequest(create_request(record));
        if requests.try_send(WatchRequest { request_union: Some(create) }).is_err() {
            return End::Broken;
        }
        let mut client = self.members[self.member].watch();
        let mut answers = Answers::new(async move { client.watch(ReceiverStream::new(receiver)).await });
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        let leave_after = self.random.usize(50..3000);
        let mut goal = self.goal.clone();
        loop {
            if let Some(goal) = *goal.borrow_and_update()
                && through(record).is_some_and(|through| through >= goal)
            {
                record.complete_to = Some(goal);
                return End::Goal;
            }
            if goal.borrow().is_none() && record.answers.len() > leave_after {
                return End::Broken;
            }
            let answer = tokio::select! {
                answer = answers.message() => answer,
                _ = progress.tick() => {
                    let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    // A full channel has a request in it already.
                    let _ = requests.try_send(WatchRequest { request_union: Some(ask) });
                    continue;
                }
                _ = goal.changed() => continue,
            };
            let Ok(Some(answer)) = answer else { return End::Broken };
            let received = self.recorder.now();
            let revision = answer.header.as_ref().map_or(0, |header| header.revision);
            let answer = WatchAnswer { received, revision, message: WatchMessage::from(&answer) };
            let message = answer.message.clone();
            record.answers.push(answer);
            if let WatchMessage::Cancelled { compact_revision, .. } = message {
                return if compact_revision > 0 { End::Compacted(compact_revision) } else { End::Broken };
            }
        }
    }
}

fn create_request(record: &WatchRecord) -> WatchCreateRequest {
    let filters = [(record.no_put, FilterType::Noput), (record.no_delete, FilterType::Nodelete)];
    WatchCreateRequest {
        key: record.key.clone().into(),
        range_end: record.range_end.clone().into(),
        start_revision: record.start_revision,
        progress_notify: true,
        filters: filters.into_iter().filter(|(set, _)| *set).map(|(_, filter)| filter.into()).collect(),
        prev_kv: record.prev_kv,
        fragment: record.fragment,
        ..Default::default()
    }
}

/// Up to which revision a watch was told everything; none before it was confirmed.
fn through(record: &WatchRecord) -> Option<i64> {
    let first = record.answers.first()?;
    let start = if record.start_revision > 0 { record.start_revision - 1 } else { first.revision };
    let told = record.answers.iter().rev().find_map(|answer| match &answer.message {
        WatchMessage::Events { events, fragment: false } => events.last().map(|event| event.kv.mod_revision),
        WatchMessage::Progress => Some(answer.revision),
        _ => None,
    });
    Some(told.unwrap_or(start).max(start))
}
