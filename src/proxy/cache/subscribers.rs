use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::first_progress::PROGRESS_WATCH_ID;
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchRequest, WatchResponse};
use crate::proxy::watch::{Subscription, UpstreamStream};
use crate::types::{KeyRange, Revision, Term};

/// Answers that one subscriber has not read, and their bytes; one with more is left to a watch of its own.
const UNREAD_MAX: usize = 4096;
const UNREAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What an answer counts besides its message.
const ANSWER_BYTES: usize = 128;
/// Requests of subscribers that wait; a subscriber waits while it is full.
const REQUESTS_MAX: usize = 64;
/// A progress request that was sent so long ago, and is not answered while later ones are, has no answer.
const UNANSWERED_MAX: Duration = Duration::from_millis(200);
/// Progress requests that are remembered.
const UNANSWERED_COUNT_MAX: usize = 4096;

/// The broadcasts of the watch hub that read what the watch of a replica receives, so that a prefix which is both read and
/// watched has one upstream watch.
///
/// A subscriber gets every event of its range after the position at which it subscribed, in order, or the end of its stream: when the
/// upstream stream ends, when the replica is dropped, and when it does not read what it gets. It then opens a watch of its own.
#[derive(Default)]
pub(super) struct Subscribers {
    /// None while no stream is followed.
    open: Mutex<Option<Open>>,
}

struct Open {
    /// Its revision is the position of the replica.
    header: ResponseHeader,
    requests: mpsc::Sender<WatchRequest>,
    subscribers: Vec<Subscriber>,
    /// The watch without events, once the member has confirmed it.
    progress_watch: Option<i64>,
    /// The replica is taking an answer of which nobody gets a copy.
    is_taking: bool,
}

struct Subscriber {
    /// Where it is narrower than the replica.
    range: Option<KeyRange>,
    answers: mpsc::Sender<Result<WatchResponse, Status>>,
    unread: Arc<AtomicUsize>,
}

impl Subscribers {
    /// What the watch of `whole`, as the cluster has the keys, receives of `range` from now on; none while it is not followed.
    pub fn subscribe(&self, whole: &KeyRange, range: &KeyRange) -> Option<Subscription> {
        if !whole.covers(range) {
            return None;
        }
        let mut open = self.open.lock();
        let open = open.as_mut().filter(|open| !open.is_taking)?;
        let (answers, received) = mpsc::channel(UNREAD_MAX);
        let unread = Arc::new(AtomicUsize::new(0));
        let range = (whole != range).then(|| range.clone());
        let subscriber = Subscriber { range, answers, unread: unread.clone() };
        if let Some(watch_id) = open.progress_watch {
            // Else it would take the notifications of that one for progress of its own, which may have events still to come.
            subscriber.send(&WatchResponse { watch_id, created: true, ..Default::default() });
        }
        open.subscribers.push(subscriber);
        let received = ReceiverStream::new(received).inspect(move |answer| {
            unread.fetch_sub(answer.as_ref().map_or(0, bytes_of), Ordering::Relaxed);
        });
        let stream = UpstreamStream { requests: open.requests.clone(), answers: received.boxed() };
        Some(Subscription { header: open.header, stream })
    }

    /// Tells all an answer of the watch without events, whose id this is while it goes on.
    fn send_of_progress_watch(&self, progress_watch: Option<i64>, answer: &WatchResponse) {
        if let Some(open) = &mut *self.open.lock() {
            open.progress_watch = progress_watch;
            open.subscribers.retain(|subscriber| subscriber.send(answer));
        }
    }
}

impl Subscriber {
    /// False when it is not to get more.
    fn send(&self, answer: &WatchResponse) -> bool {
        let answer = match &self.range {
            Some(range) if !answer.events.is_empty() => {
                let inside =
                    answer.events.iter().filter(|event| event.kv.as_ref().is_some_and(|kv| range.contains(&kv.key)));
                let events: Vec<_> = inside.cloned().collect();
                if events.is_empty() {
                    return !self.answers.is_closed();
                }
                WatchResponse { header: answer.header, watch_id: answer.watch_id, events, ..Default::default() }
            }
            _ => answer.clone(),
        };
        let bytes = bytes_of(&answer);
        let unread = self.unread.fetch_add(bytes, Ordering::Relaxed);
        // One larger than that is taken by who has read all others.
        let takes_more = unread == 0 || unread + bytes <= UNREAD_BYTES_MAX;
        takes_more && self.answers.try_send(Ok(answer)).is_ok()
    }
}

fn bytes_of(answer: &WatchResponse) -> usize {
    ANSWER_BYTES + answer.encoded_len()
}

/// One upstream stream, from the side of the task that follows it for a replica and its subscribers.
pub(super) struct Publisher<'r> {
    subscribers: &'r Subscribers,
    requests: mpsc::Receiver<WatchRequest>,
    progress: ProgressAnswers,
    /// A watch without events, whose notifications tell subscribers of the member's interval, was asked for.
    has_progress_watch: bool,
    /// Its id, once the member has confirmed it.
    progress_watch: Option<i64>,
}

/// What the task has to do for a subscriber.
pub(super) enum Asked {
    Nothing,
    /// Send a progress request.
    Progress,
    /// Send this.
    Request(WatchRequest),
}

impl<'r> Publisher<'r> {
    /// `header` has the position of the replica, and who serves the stream.
    pub fn open(subscribers: &'r Subscribers, header: ResponseHeader) -> Self {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        *subscribers.open.lock() =
            Some(Open { header, requests: sender, subscribers: Vec::new(), progress_watch: None, is_taking: false });
        Self {
            subscribers,
            requests,
            progress: ProgressAnswers::default(),
            has_progress_watch: false,
            progress_watch: None,
        }
    }

    /// A request of a subscriber.
    pub async fn request(&mut self) -> Option<WatchRequest> {
        self.requests.recv().await
    }

    /// Takes a request of a subscriber: for progress, or for a watch without events, of which one serves all. Whoever subscribes is told
    /// of that, wanted or not.
    pub fn take(&mut self, request: WatchRequest) -> Asked {
        match &request.request_union {
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress.ask();
                Asked::Progress
            }
            Some(RequestUnion::CreateRequest(_)) if !self.has_progress_watch => {
                self.has_progress_watch = true;
                Asked::Request(request)
            }
            _ => Asked::Nothing,
        }
    }

    /// The request for the watch without events could not be sent.
    pub fn not_sent(&mut self) {
        self.has_progress_watch = false;
    }

    /// A progress request was sent.
    pub fn progress_sent(&mut self, now: Instant) {
        self.progress.sent(now);
    }

    /// Whether an answer is that of the watch without events: then it is passed on, and no business of the replica.
    pub fn takes(&mut self, answer: &WatchResponse) -> bool {
        if !answer.created && self.progress_watch != Some(answer.watch_id) {
            return false;
        }
        self.has_progress_watch &= !answer.canceled;
        self.progress_watch = (!answer.canceled).then_some(answer.watch_id);
        self.subscribers.send_of_progress_watch(self.progress_watch, answer);
        true
    }

    /// A copy of an answer for subscribers, if there are any whom it concerns. Until it is [forwarded](Self::forward), or none is, nobody
    /// subscribes who would miss it.
    pub fn copy(&mut self, answer: &WatchResponse, now: Instant) -> Option<WatchResponse> {
        let concerns = answer.watch_id != PROGRESS_WATCH_ID || self.progress.is_told(now);
        let mut open = self.subscribers.open.lock();
        let open = open.as_mut()?;
        open.is_taking = open.subscribers.is_empty();
        (concerns && !open.is_taking).then(|| answer.clone())
    }

    /// The replica has taken an answer, whose copy this is.
    pub fn forward(&self, position: Revision, term: Term, copy: Option<WatchResponse>) {
        if let Some(open) = &mut *self.subscribers.open.lock() {
            (open.header.revision, open.header.raft_term, open.is_taking) = (position.0, term.0, false);
            if let Some(answer) = copy {
                open.subscribers.retain(|subscriber| subscriber.send(&answer));
            }
        }
    }

    /// Ends the streams of all subscribers with a status.
    pub fn close(self, status: &Status) {
        if let Some(open) = self.subscribers.open.lock().take() {
            for subscriber in open.subscribers {
                // It may be gone, and ends without the reason if it has not read.
                let _ = subscriber.answers.try_send(Err(status.clone()));
            }
        }
    }
}

/// However it ends, nobody waits for more.
impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        *self.subscribers.open.lock() = None;
    }
}

/// Which answers to progress requests subscribers are told. Decisions only.
///
/// Requests go out for readers of the replica all the time. A subscriber that asks is told the answer to a request that was sent
/// after it asked: a member answers in order, or not at all.
#[derive(Default)]
struct ProgressAnswers {
    /// A subscriber has asked, and no request was sent since.
    is_asked: bool,
    /// Requests without an answer so far, oldest first: when they were sent, and whether a subscriber had asked.
    unanswered: VecDeque<(Instant, bool)>,
}

impl ProgressAnswers {
    fn ask(&mut self) {
        self.is_asked = true;
    }

    fn sent(&mut self, now: Instant) {
        if self.unanswered.len() >= UNANSWERED_COUNT_MAX {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back((now, std::mem::take(&mut self.is_asked)));
    }

    /// An answer has come: whether it is passed on.
    fn is_told(&mut self, now: Instant) -> bool {
        while self.unanswered.len() > 1
            && self.unanswered.front().is_some_and(|(sent, _)| now.duration_since(*sent) > UNANSWERED_MAX)
        {
            self.unanswered.pop_front();
        }
        self.unanswered.pop_front().is_some_and(|(_, asked)| asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest};
    use crate::pb::mvccpb::{Event, KeyValue};

    fn key(key: &'static str) -> KeyRange {
        KeyRange::One(key.into())
    }

    fn whole() -> KeyRange {
        KeyRange::prefix("p/".into())
    }

    fn events(revision: i64, keys: &[&'static str]) -> WatchResponse {
        let event = |key: &&'static str| {
            let kv = KeyValue { key: (*key).into(), mod_revision: revision, ..Default::default() };
            Event { kv: Some(kv), ..Default::default() }
        };
        WatchResponse { events: keys.iter().map(event).collect(), ..Default::default() }
    }

    fn progress() -> WatchResponse {
        WatchResponse { watch_id: PROGRESS_WATCH_ID, ..Default::default() }
    }

    fn passes(publisher: &mut Publisher<'_>, answer: &WatchResponse, position: i64) {
        let copy = publisher.copy(answer, Instant::now());
        publisher.forward(Revision(position), Term(1), copy);
    }

    fn keys(answer: &WatchResponse) -> Vec<&[u8]> {
        answer.events.iter().filter_map(|event| Some(&*event.kv.as_ref()?.key)).collect()
    }

    #[tokio::test]
    async fn each_subscriber_gets_its_range_from_its_position_on() {
        let subscribers = Subscribers::default();
        assert!(subscribers.subscribe(&whole(), &whole()).is_none(), "nothing is followed");
        let mut publisher = Publisher::open(&subscribers, ResponseHeader { revision: 4, ..Default::default() });
        let mut all = subscribers.subscribe(&whole(), &whole()).unwrap();
        assert!(all.header.revision == 4 && subscribers.subscribe(&whole(), &key("q")).is_none());
        passes(&mut publisher, &events(5, &["p/1", "p/2"]), 5);
        let mut one = subscribers.subscribe(&whole(), &key("p/2")).unwrap();
        assert_eq!(one.header.revision, 5);
        passes(&mut publisher, &events(6, &["p/1"]), 6);
        passes(&mut publisher, &events(7, &["p/1", "p/2"]), 7);
        for expected in [vec!["p/1", "p/2"], vec!["p/1"], vec!["p/1", "p/2"]] {
            assert_eq!(
                keys(&all.stream.next().await.unwrap()),
                expected.iter().map(|key| key.as_bytes()).collect::<Vec<_>>()
            );
        }
        assert_eq!(keys(&one.stream.next().await.unwrap()), [b"p/2"]);
        publisher.close(&Status::unavailable("cut"));
        for mut subscription in [all, one] {
            assert_eq!(subscription.stream.next().await.unwrap_err().message(), "cut");
            assert!(!subscription.is_open());
        }
    }

    #[tokio::test]
    async fn nobody_subscribes_while_an_answer_is_taken_without_a_copy() {
        let subscribers = Subscribers::default();
        let mut publisher = Publisher::open(&subscribers, ResponseHeader::default());
        let copy = publisher.copy(&events(5, &["p/1"]), Instant::now());
        assert!(copy.is_none() && subscribers.subscribe(&whole(), &whole()).is_none());
        publisher.forward(Revision(5), Term(1), copy);
        assert_eq!(subscribers.subscribe(&whole(), &whole()).unwrap().header.revision, 5);
    }

    #[tokio::test]
    async fn who_does_not_read_is_left_to_a_watch_of_its_own() {
        let subscribers = Subscribers::default();
        let mut publisher = Publisher::open(&subscribers, ResponseHeader::default());
        let mut idle = subscribers.subscribe(&whole(), &whole()).unwrap();
        let mut large = events(5, &["p/1"]);
        large.events[0].kv.as_mut().unwrap().value = vec![0; UNREAD_BYTES_MAX * 2 / 3].into();
        passes(&mut publisher, &large, 5);
        assert!(idle.stream.next().await.is_ok(), "one that reads");
        passes(&mut publisher, &large, 6);
        passes(&mut publisher, &large, 7);
        passes(&mut publisher, &events(8, &["p/1"]), 8);
        assert!(idle.stream.next().await.is_ok());
        assert!(idle.stream.next().await.is_err(), "not the one behind the one that it did not get");
    }

    #[tokio::test]
    async fn one_watch_without_events_serves_all() {
        let subscribers = Subscribers::default();
        let mut publisher = Publisher::open(&subscribers, ResponseHeader::default());
        let (mut one, mut other) =
            (subscribers.subscribe(&whole(), &whole()).unwrap(), subscribers.subscribe(&whole(), &key("p/1")).unwrap());
        let create =
            || WatchRequest { request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest::default())) };
        assert!(matches!(publisher.take(create()), Asked::Request(_)));
        let progress_watch = WatchResponse { watch_id: 1, created: true, ..Default::default() };
        assert!(!publisher.takes(&events(5, &["p/1"])) && publisher.takes(&progress_watch));
        assert!(matches!(publisher.take(create()), Asked::Nothing), "there is one");
        let mut later = subscribers.subscribe(&whole(), &key("p/2")).unwrap();
        assert!(publisher.takes(&WatchResponse { watch_id: 1, ..Default::default() }));
        for subscription in [&mut one, &mut other, &mut later] {
            let created = subscription.stream.next().await.unwrap();
            assert!(
                created.created && created.watch_id == 1,
                "before any notification, which is no progress of its events"
            );
            assert!(!subscription.stream.next().await.unwrap().created);
        }
        assert!(publisher.takes(&WatchResponse { watch_id: 1, canceled: true, ..Default::default() }));
        let mut last = subscribers.subscribe(&whole(), &key("p/3")).unwrap();
        passes(&mut publisher, &events(5, &["p/3"]), 5);
        assert_eq!(keys(&last.stream.next().await.unwrap()), [b"p/3"], "there is none any more");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_progress_is_told_what_was_sent_for_since() {
        let subscribers = Subscribers::default();
        let mut publisher = Publisher::open(&subscribers, ResponseHeader::default());
        let subscription = subscribers.subscribe(&whole(), &whole()).unwrap();
        let ask = WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) };
        subscription.stream.requests.send(ask).await.unwrap();
        publisher.progress_sent(Instant::now());
        let asked = publisher.request().await.unwrap();
        assert!(matches!(publisher.take(asked.clone()), Asked::Progress));
        publisher.progress_sent(Instant::now());
        assert!(publisher.copy(&progress(), Instant::now()).is_none(), "the answer to the one before");
        assert!(publisher.copy(&progress(), Instant::now()).is_some());
        assert!(publisher.copy(&progress(), Instant::now()).is_none(), "nobody has asked");
        // One that gets no answer does not hold up the next.
        publisher.progress_sent(Instant::now());
        tokio::time::advance(UNANSWERED_MAX * 2).await;
        assert!(matches!(publisher.take(asked), Asked::Progress));
        publisher.progress_sent(Instant::now());
        assert!(publisher.copy(&progress(), Instant::now()).is_some());
    }
}
