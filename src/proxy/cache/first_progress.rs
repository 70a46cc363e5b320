use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchProgressRequest, WatchRequest, WatchResponse};
use crate::proxy::watch::UpstreamStream;

/// Watch id in the answer to a progress request.
pub(in crate::proxy) const PROGRESS_WATCH_ID: i64 = -1;

/// Why a new stream is of no use.
pub(super) enum NoProgress<E> {
    /// What answers there answers no progress requests, as etcd's own proxy: it may merge watches in a way that loses events.
    Unanswered,
    Broken(Status),
    /// An answer was refused.
    Refused(E),
}

/// Requests progress on a new stream, again after each `pause`, and hands every answer to `take` until one is to such a
/// request.
pub(super) async fn first_progress<E>(
    stream: &mut UpstreamStream,
    pause: Duration,
    within: Duration,
    mut take: impl FnMut(WatchResponse) -> Result<(), E>,
) -> Result<(), NoProgress<E>> {
    let asking = async {
        let mut request_at = Instant::now();
        loop {
            tokio::select! {
                answer = stream.next() => {
                    let answer = answer.map_err(NoProgress::Broken)?;
                    let answered = answer.watch_id == PROGRESS_WATCH_ID && !answer.canceled;
                    take(answer).map_err(NoProgress::Refused)?;
                    if answered {
                        return Ok(());
                    }
                }
                () = sleep_until(request_at) => {
                    // A stream that takes no more requests sends no answers either.
                    let _ = stream.requests.try_send(progress_request());
                    request_at = Instant::now() + pause;
                }
            }
        }
    };
    timeout(within, asking).await.unwrap_or(Err(NoProgress::Unanswered))
}

pub(in crate::proxy) fn progress_request() -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(50);
    const WITHIN: Duration = Duration::from_secs(10);

    type Answers = mpsc::Sender<Result<WatchResponse, Status>>;

    fn stream() -> (UpstreamStream, mpsc::Receiver<WatchRequest>, Answers) {
        let (requests, received) = mpsc::channel(1000);
        let (answers, sent) = mpsc::channel(1000);
        (UpstreamStream { requests, answers: ReceiverStream::new(sent).boxed() }, received, answers)
    }

    fn answer(watch_id: i64) -> WatchResponse {
        WatchResponse { watch_id, ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_before_the_answer_is_taken() {
        let (mut stream, mut requests, answers) = stream();
        answers.send(Ok(answer(0))).await.unwrap();
        let member = async {
            // The first request is lost, as on a watch that is catching up.
            requests.recv().await;
            requests.recv().await;
            answers.send(Ok(answer(0))).await.unwrap();
            answers.send(Ok(answer(PROGRESS_WATCH_ID))).await.unwrap();
        };
        let mut taken = Vec::new();
        let asking = first_progress(&mut stream, PAUSE, WITHIN, |answer| {
            taken.push(answer.watch_id);
            Ok::<_, ()>(())
        });
        let (outcome, ()) = tokio::join!(asking, member);
        assert!(outcome.is_ok());
        assert_eq!(taken, [0, 0, PROGRESS_WATCH_ID]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_no_request_is_found_out() {
        let (mut stream, _requests, answers) = stream();
        answers.send(Ok(answer(0))).await.unwrap();
        let outcome = first_progress(&mut stream, PAUSE, WITHIN, |_| Ok::<_, ()>(())).await;
        assert!(matches!(outcome, Err(NoProgress::Unanswered)));
        answers.send(Ok(answer(0))).await.unwrap();
        let outcome = first_progress(&mut stream, PAUSE, WITHIN, |_| Err("no")).await;
        assert!(matches!(outcome, Err(NoProgress::Refused("no"))));
        drop(answers);
        let outcome = first_progress(&mut stream, PAUSE, WITHIN, |_| Ok::<_, ()>(())).await;
        assert!(matches!(outcome, Err(NoProgress::Broken(_))));
    }
}
