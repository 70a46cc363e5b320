use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_request,
};
use watershed::pb::mvccpb::event::EventType;

use super::{Answers, soon};

/// One watch stream.
pub struct Watching {
    requests: mpsc::Sender<WatchRequest>,
    answers: Answers<WatchResponse>,
}

impl Watching {
    /// Opens a stream without a watch on it.
    pub fn open(client: &Client) -> Self {
        let (requests, receiver) = mpsc::channel(1024);
        let mut client = client.watch();
        Self { requests, answers: Answers::new(async move { client.watch(ReceiverStream::new(receiver)).await }) }
    }

    /// Opens a stream with one watch that is confirmed.
    pub async fn create(client: &Client, request: WatchCreateRequest) -> (Self, WatchResponse) {
        let mut watching = Self::open(client);
        let created = watching.add(request).await;
        (watching, created)
    }

    /// The same with a token, unless it is empty.
    pub async fn create_as(client: &Client, token: &str, request: WatchCreateRequest) -> (Self, WatchResponse) {
        let (requests, receiver) = mpsc::channel(1024);
        let (mut client, mut call) = (client.watch(), tonic::Request::new(ReceiverStream::new(receiver)));
        if !token.is_empty() {
            call.metadata_mut().insert("token", token.parse().expect("ascii"));
        }
        let mut watching = Self { requests, answers: Answers::new(async move { client.watch(call).await }) };
        let created = watching.add(request).await;
        (watching, created)
    }

    /// Sends any request.
    pub async fn send(&self, union: Option<watch_request::RequestUnion>) {
        self.requests.send(WatchRequest { request_union: union }).await.expect("the stream is open");
    }

    /// Asks for a watch without waiting.
    pub async fn ask(&self, request: WatchCreateRequest) {
        self.send(Some(watch_request::RequestUnion::CreateRequest(request))).await;
    }

    /// Adds a watch; the next answer must be its confirmation or refusal.
    pub async fn add(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.ask(request).await;
        let answer = self.next().await;
        assert!(answer.created, "{answer:?}");
        answer
    }

    /// Cancels a watch without waiting.
    pub async fn cancel(&self, watch_id: i64) {
        self.send(Some(watch_request::RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))).await;
    }

    /// Asks how far the stream is.
    pub async fn request_progress(&self) {
        self.send(Some(watch_request::RequestUnion::ProgressRequest(WatchProgressRequest {}))).await;
    }

    /// Ends the sending side only.
    pub fn half_close(self) -> Answers<WatchResponse> {
        self.answers
    }

    /// The next answer, which must come.
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = WatchResponse> {
        let next = soon("a watch answer", self.answers.message());
        async move { next.await.expect("no error").expect("the stream goes on") }
    }

    /// Asserts that nothing arrives for a while. The last resort where no later answer can prove it.
    pub async fn quiet_for(&mut self, time: Duration) {
        if let Ok(answer) = tokio::time::timeout(time, self.answers.message()).await {
            panic!("expected nothing, got {answer:?}");
        }
    }

    /// The next `count` events in words, over as many answers as they take: `+key=value@revision`, `-key@revision`.
    pub async fn events(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        while events.len() < count {
            let answer = self.next().await;
            assert!(!answer.canceled, "{answer:?}");
            events.extend(in_words(&answer));
        }
        events
    }
}

/// The events of one answer in words.
pub fn in_words(answer: &WatchResponse) -> Vec<String> {
    let words = |event: &watershed::pb::mvccpb::Event| {
        let kv = event.kv.as_ref().expect("an event has a key-value");
        let key = String::from_utf8_lossy(&kv.key);
        let value = String::from_utf8_lossy(&kv.value);
        match event.r#type() {
            EventType::Put => format!("+{key}={value}@{}", kv.mod_revision),
            EventType::Delete => format!("-{key}@{}", kv.mod_revision),
        }
    };
    answer.events.iter().map(words).collect()
}
