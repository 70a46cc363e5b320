use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ring::rand::{SystemRandom, generate};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::stream::Stream;

/// What a question begins with; the number and two ends of line follow.
const QUESTION: &[u8] =
    b"OPTIONS * HTTP/1.1\r\nHost: watershed-gateway\r\nConnection: close\r\nX-Watershed-Gateway-Loop: ";
/// The number in hexadecimal digits.
const NUMBER_BYTES: usize = 32;
/// Time in which a question comes back, or is answered.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Pause before a connection whose first bytes have come in part is looked at again.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// Open connections at which the first questions are asked.
const OPEN_FIRST: usize = 16;

/// The open questions.
#[derive(Debug)]
pub(super) struct LoopQuestions {
    is_on: bool,
    open: Mutex<HashMap<String, oneshot::Sender<()>>>,
    count: AtomicUsize,
    /// The last question has ended.
    ended: Notify,
    wanted: Notify,
}

/// A question that has been asked; it ends with this value.
pub(super) struct Question<'s> {
    questions: &'s LoopQuestions,
    number: String,
    pub(super) came_back: oneshot::Receiver<()>,
}

impl LoopQuestions {
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, open: Mutex::default(), count: AtomicUsize::new(0), ended: Notify::new(), wanted: Notify::new() }
    }

    /// Has all endpoints that are used asked.
    pub(super) fn want(&self) {
        if self.is_on {
            self.wanted.notify_one();
        }
    }

    /// Ready when they shall be asked.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether this connection of a client is a question of this gateway. No byte of it is taken.
    pub(super) async fn has_come_back(&self, client: &Stream) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let deadline = Instant::now() + WINDOW;
        let mut head = [0; QUESTION.len() + NUMBER_BYTES];
        loop {
            let mut ended = pin!(self.ended.notified());
            // Before the count, so that an end in between is not missed.
            ended.as_mut().enable();
            if self.count.load(Ordering::Acquire) == 0 {
                return false;
            }
            tokio::select! {
                () = ended => return false,
                () = sleep_until(deadline) => return false,
                readable = client.readable() => if readable.is_err() { return false },
            }
            let said = match client.try_peek(&mut head) {
                Ok(0) => return false,
                Ok(bytes) => &head[..bytes],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return false,
            };
            let beginning = said.len().min(QUESTION.len());
            if said[..beginning] != QUESTION[..beginning] {
                return false;
            }
            if said.len() == head.len() {
                return self.found(&said[QUESTION.len()..]);
            }
            sleep(LOOK_PAUSE).await;
        }
    }

    fn found(&self, number: &[u8]) -> bool {
        let asked = std::str::from_utf8(number).ok().and_then(|number| self.open.lock().remove(number));
        // Who asked may have given up in this moment.
        asked.is_some_and(|asked| asked.send(()).is_ok())
    }

    /// None without randomness.
    pub(super) fn ask(&self) -> Option<Question<'_>> {
        let random: [u8; NUMBER_BYTES / 2] = generate(&SystemRandom::new()).ok()?.expose();
        let number: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let (sender, came_back) = oneshot::channel();
        self.open.lock().insert(number.clone(), sender);
        self.count.fetch_add(1, Ordering::AcqRel);
        Some(Question { questions: self, number, came_back })
    }
}

impl Question<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        [QUESTION, self.number.as_bytes(), b"\r\n\r\n"].concat()
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.questions.open.lock().remove(&self.number);
        if self.questions.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.questions.ended.notify_waiters();
        }
    }
}

/// Tells when so many connections are open as a loop may have made.
#[derive(Debug)]
pub(super) struct Growth {
    next: usize,
}

impl Growth {
    pub(super) fn new() -> Self {
        Self { next: OPEN_FIRST }
    }

    /// Takes note of the number of open connections.
    pub(super) fn is_due(&mut self, open: usize) -> bool {
        while self.next > OPEN_FIRST && open < self.next / 4 {
            self.next /= 2;
        }
        let due = open >= self.next;
        if due {
            self.next = self.next.saturating_mul(2);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn questions_are_asked_at_each_doubling_and_after_it_has_been_quiet() {
        let mut growth = Growth::new();
        let due: Vec<usize> = (0..200).filter(|&open| growth.is_due(open)).collect();
        assert_eq!(due, [16, 32, 64, 128]);
        assert!(!growth.is_due(100) && !growth.is_due(200) && growth.is_due(256));
        assert!(!growth.is_due(0) && growth.is_due(17));
    }

    async fn connection(says: &[u8]) -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(says).await.unwrap();
        (listener.accept().await.unwrap().0.into(), client)
    }

    #[tokio::test]
    async fn a_question_is_known_in_whatever_pieces_it_comes_and_nothing_else_is() {
        let questions = LoopQuestions::new(true);
        let question = questions.ask().unwrap();
        let bytes = question.bytes();
        let other = [QUESTION, &[b'0'; NUMBER_BYTES], b"\r\n\r\n"].concat();
        for says in [&b"OPTIONS * HTTP/1.1\r\nHost: x\r\n"[..], b"PRI * HTTP/2.0", &other] {
            let (mut accepted, _client) = connection(says).await;
            assert!(!questions.has_come_back(&accepted).await);
            let mut read = vec![0; says.len()];
            accepted.read_exact(&mut read).await.unwrap();
            assert_eq!(read, says, "nothing was taken");
        }
        let (accepted, mut client) = connection(&bytes[..5]).await;
        let (came_back, ()) = tokio::join!(questions.has_come_back(&accepted), async {
            for piece in bytes[5..].chunks(40) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        assert!(came_back);
        let (again, _client) = connection(&bytes).await;
        assert!(!questions.has_come_back(&again).await, "it has come back already");
        drop(question);
        assert!(questions.open.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_waits_no_longer_than_a_question_is_open() {
        let questions = LoopQuestions::new(true);
        let (silent, _client) = connection(b"").await;
        let started = Instant::now();
        assert!(!questions.has_come_back(&silent).await);
        assert_eq!(started.elapsed(), Duration::ZERO, "there is no question");
        let question = questions.ask().unwrap();
        let (came_back, ()) = tokio::join!(questions.has_come_back(&silent), async {
            sleep(Duration::from_millis(10)).await;
            drop(question);
        });
        assert!(!came_back && started.elapsed() < WINDOW);
        let _question = questions.ask().unwrap();
        let asked = Instant::now();
        assert!(!questions.has_come_back(&silent).await);
        assert!(asked.elapsed() >= WINDOW && asked.elapsed() < WINDOW * 2);
    }
}
