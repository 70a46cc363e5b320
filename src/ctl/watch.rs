use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::failure::{Exit, Failure, status_text};
use super::flags::{self, Flag, Parsed, Word};
use super::print::Printer;
use super::session::{Session, show};
use super::tree::WATCH_FLAGS;
use super::{exec, golang, requests, txn};
use crate::api_error::ApiError;
use crate::client::Client;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};

/// Requests that wait for the stream; more come from an operator's keyboard only.
const REQUESTS: usize = 64;
/// Pause before a lost stream is opened again.
const REOPEN: Duration = Duration::from_millis(200);

/// Variables that stand for the arguments of a watch.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    key: Option<String>,
    range_end: Option<String>,
}

impl Variables {
    pub(super) fn read(environment: &[(String, String)]) -> Result<Self, Failure> {
        let find = |name: &str| {
            let found = environment.iter().find(|(key, value)| key == name && !value.is_empty());
            found.map(|(_, value)| value.clone())
        };
        let variables = Self { key: find("ETCDCTL_WATCH_KEY"), range_end: find("ETCDCTL_WATCH_RANGE_END") };
        if let (None, Some(end)) = (&variables.key, &variables.range_end) {
            let end = golang::quote(end.as_bytes());
            return Err(Failure::args(format!("ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={end}")));
        }
        Ok(variables)
    }
}

/// One watch: what to ask for, and what to run for each event.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    request: WatchCreateRequest,
    command: Vec<Word>,
}

impl Plan {
    fn read(parsed: &Parsed, variables: &Variables) -> Result<Self, Failure> {
        let (words, command) = match parsed.separator {
            Some(at) if at == parsed.args.len() => {
                let text = "bad number of arguments (found separator --, but no commands)";
                return Err(Failure::args(text));
            }
            Some(at) => parsed.args.split_at(at),
            None => (parsed.args.as_slice(), &[][..]),
        };
        let words: Vec<Word> = match &variables.key {
            Some(_) if !words.is_empty() => {
                return Err(Failure::args("bad number of arguments (found conflicting environment key)"));
            }
            Some(key) => [key].into_iter().chain(&variables.range_end).map(|word| word.clone().into_bytes()).collect(),
            None => words.to_vec(),
        };
        let (key, range_end) = requests::watch_span(&words, parsed.bool("prefix"))?;
        let request = WatchCreateRequest {
            key,
            range_end,
            start_revision: parsed.int("rev"),
            prev_kv: parsed.bool("prev-kv"),
            progress_notify: parsed.bool("progress-notify"),
            ..Default::default()
        };
        Ok(Self { request, command: command.to_vec() })
    }
}

/// All watches of this process, over one stream, as the Go client does it.
struct Watcher {
    client: Client,
    printer: Printer,
    /// Watches the server has not confirmed yet, in the order they were asked for.
    asked: VecDeque<Plan>,
    /// Confirmed ones by watch id. A plan's start revision moves on with its events, so that a new stream resumes.
    live: BTreeMap<i64, Plan>,
    stream: Option<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)>,
}

pub(super) async fn run(mut session: Session, parsed: &Parsed, variables: &Variables) -> Result<(), Failure> {
    if parsed.bool("interactive") {
        return interactive(session, variables).await;
    }
    let plan = Plan::read(parsed, variables)?;
    let mut watcher = Watcher::new(&mut session).await?;
    watcher.add(plan).await;
    while !watcher.is_empty() {
        let answer = watcher.next().await;
        watcher.handle(answer).await?;
    }
    Err(Failure::new(Exit::Interrupted, "watch is canceled by the server"))
}

/// What a line of `watch -i` asks for.
#[derive(Debug, PartialEq)]
enum Line {
    Watch(Plan),
    Progress,
    /// Nothing that can be done; the text says why.
    Nothing(String),
}

impl Line {
    fn read(line: &str, variables: &Variables) -> Result<Self, Failure> {
        let words = txn::split(line)?;
        let Some(verb) = words.first() else {
            return Ok(Self::Nothing(format!("Invalid command: {line} (watch and progress supported)")));
        };
        match verb.as_slice() {
            b"watch" if words.len() < 2 && variables.key.is_none() => {
                let text = format!("Invalid command {line} (command type or key is not provided)");
                Ok(Self::Nothing(text))
            }
            b"watch" => {
                let known: Vec<&Flag> = WATCH_FLAGS.iter().collect();
                let parsed = flags::parse(&known, &words[1..]).map_err(Failure::args)?;
                Ok(Self::Watch(Plan::read(&parsed, variables)?))
            }
            b"progress" => Ok(Self::Progress),
            _ => Ok(Self::Nothing(format!("Invalid command {line} (only support watch)"))),
        }
    }
}

async fn interactive(mut session: Session, variables: &Variables) -> Result<(), Failure> {
    let mut watcher = Watcher::new(&mut session).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        // Both branches only wait: a half-read line stays in the reader, a half-read answer in the stream.
        let answer = tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => {
                    match Line::read(&line, variables)? {
                        Line::Watch(plan) => watcher.add(plan).await,
                        Line::Progress => watcher.ask_progress().await,
                        Line::Nothing(why) => eprintln!("{why}"),
                    }
                    continue;
                }
                Ok(None) => {
                    let text = "error reading watch request line: EOF";
                    return Err(Failure::new(Exit::InvalidInput, text));
                }
                Err(error) => {
                    let text = format!("error reading watch request line: {error}");
                    return Err(Failure::new(Exit::InvalidInput, text));
                }
            },
            answer = watcher.next(), if !watcher.is_empty() => answer,
        };
        watcher.handle(answer).await?;
    }
}

impl Watcher {
    async fn new(session: &mut Session) -> Result<Self, Failure> {
        Ok(Self {
            client: session.client().await?,
            printer: session.printer,
            asked: VecDeque::new(),
            live: BTreeMap::new(),
            stream: None,
        })
    }

    fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.live.is_empty()
    }

    async fn add(&mut self, plan: Plan) {
        if let Some((requests, _)) = &self.stream {
            // A stream that just ended is opened again with every plan, so a failure here loses nothing.
            let _ = requests.send(create(&plan)).await;
        }
        self.asked.push_back(plan);
    }

    async fn ask_progress(&mut self) {
        if let Some((requests, _)) = &self.stream {
            let union = RequestUnion::ProgressRequest(WatchProgressRequest {});
            let _ = requests.send(WatchRequest { request_union: Some(union) }).await;
        }
    }

    /// The next answer; opens the stream first when there is none. Safe to drop while it waits.
    async fn next(&mut self) -> Result<WatchResponse, Status> {
        if self.stream.is_none() {
            self.stream = Some(self.open().await?);
        }
        let (_, answers) = self.stream.as_mut().expect("opened above");
        answers.message().await?.ok_or_else(|| Status::unavailable("watch stream ended"))
    }

    /// Opens a stream that asks for every watch again. The plans move only once it is open.
    async fn open(&mut self) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Status> {
        // Members send no headers before their first answer, so the requests have to be there first.
        let plans: Vec<Plan> = std::mem::take(&mut self.live).into_values().chain(self.asked.drain(..)).collect();
        let (sender, requests) = mpsc::channel(plans.len() + REQUESTS);
        for plan in &plans {
            sender.try_send(create(plan)).map_err(|_| Status::internal("the queue has room for every plan"))?;
        }
        self.asked = plans.into();
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        Ok((sender, self.client.watch().watch(request).await?.into_inner()))
    }

    async fn handle(&mut self, answer: Result<WatchResponse, Status>) -> Result<(), Failure> {
        let answer = match answer {
            Ok(answer) => answer,
            // The connection or the member went away, or the token is no longer accepted: open another stream, from
            // where each watch stands.
            Err(status)
                if matches!(status.code(), Code::Unavailable | Code::Internal | Code::Unknown)
                    || self.client.logs_in_after(status.message()) =>
            {
                self.stream = None;
                tokio::time::sleep(REOPEN).await;
                return Ok(());
            }
            Err(status) => {
                eprintln!("watch was canceled ({})", status_text(&status));
                self.stream = None;
                self.live.clear();
                self.asked.clear();
                return Ok(());
            }
        };
        let mut refused = None;
        if answer.created {
            match self.asked.pop_front() {
                Some(mut plan) if !answer.canceled => {
                    if plan.request.start_revision == 0 {
                        // It begins right behind this revision, and has to after a loss of the stream, too.
                        plan.request.start_revision = answer.header.map_or(0, |header| header.revision + 1);
                    }
                    self.live.insert(answer.watch_id, plan);
                }
                plan => refused = plan,
            }
        }
        if answer.canceled {
            let plan = self.live.remove(&answer.watch_id).or(refused);
            if self.client.logs_in_after(&answer.cancel_reason) {
                self.asked.extend(plan);
                self.stream = None;
                tokio::time::sleep(REOPEN).await;
                return Ok(());
            }
            eprintln!("watch was canceled ({})", cancel_text(&answer));
            // Of a watch that was refused at its creation etcdctl shows that it was canceled, and nothing else.
            let refused = || WatchResponse { header: Some(Default::default()), canceled: true, ..Default::default() };
            let shown = if answer.created { refused() } else { answer };
            return show(self.printer.watch(&shown)?);
        }
        if answer.created {
            return Ok(());
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.events.is_empty() {
            // Progress of the whole stream is news for each of its watches.
            let all = answer.watch_id == -1;
            let ids: Vec<i64> = self.live.keys().copied().filter(|id| all || *id == answer.watch_id).collect();
            for id in ids {
                if let Some(plan) = self.live.get_mut(&id) {
                    plan.request.start_revision = plan.request.start_revision.max(revision + 1);
                }
                show(format!("progress notify: {revision}\n"))?;
                show(self.printer.watch(&answer)?)?;
            }
            return Ok(());
        }
        show(self.printer.watch(&answer)?)?;
        let Some(plan) = self.live.get_mut(&answer.watch_id) else { return Ok(()) };
        let last = answer.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        plan.request.start_revision = last.map_or(plan.request.start_revision, |last| last + 1);
        if !plan.command.is_empty() {
            for event in &answer.events {
                exec::for_event(&plan.command, revision, event).await?;
            }
        }
        Ok(())
    }
}

fn create(plan: &Plan) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(plan.request.clone())) }
}

fn cancel_text(answer: &WatchResponse) -> String {
    if answer.compact_revision != 0 {
        return ApiError::Compacted.text().to_owned();
    }
    match answer.cancel_reason.as_str() {
        "" => ApiError::FutureRevision.text().to_owned(),
        reason if answer.created || ApiError::from_text(reason).is_some() => reason.to_owned(),
        reason => format!("rpc error: code = FailedPrecondition desc = {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::{self, Options};
    use super::*;
    use crate::pb::etcdserverpb::ResponseHeader;

    fn plan(line: &str, environment: &[(&str, &str)]) -> Result<Plan, Failure> {
        let words: Vec<Word> = line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect();
        let parsed = flags::parse(&WATCH_FLAGS.iter().collect::<Vec<_>>(), &words).unwrap();
        let environment: Vec<_> = environment.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        Plan::read(&parsed, &Variables::read(&environment)?)
    }

    #[test]
    fn a_watch_has_a_span_and_maybe_a_command() {
        let found = plan("foo --rev 5 bar -- echo hi", &[]).unwrap();
        assert_eq!((found.request.key.as_ref(), found.request.range_end.as_ref()), (&b"foo"[..], &b"bar"[..]));
        assert_eq!(found.request.start_revision, 5);
        assert_eq!(found.command, [b"echo".to_vec(), b"hi".to_vec()]);
        let all = plan("a --prefix --prev-kv", &[]).unwrap();
        assert!(all.request.range_end == "b" && all.request.prev_kv && all.command.is_empty());
    }

    #[test]
    fn variables_stand_for_the_arguments() {
        let key = ("ETCDCTL_WATCH_KEY", "k");
        let end = ("ETCDCTL_WATCH_RANGE_END", "z");
        let found = plan("-- echo", &[key, end]).unwrap();
        assert_eq!((found.request.key.as_ref(), found.request.range_end.as_ref()), (&b"k"[..], &b"z"[..]));
        assert_eq!(plan("", &[key]).unwrap().request.key, "k");
        assert_eq!(plan("x", &[key]).unwrap_err().text, "bad number of arguments (found conflicting environment key)");
        assert!(plan("", &[end]).unwrap_err().text.starts_with("ETCDCTL_WATCH_KEY is empty"));
    }

    #[test]
    fn refusals_have_etcdctls_words() {
        for (line, text) in [
            ("", "bad number of arguments"),
            ("foo --", "bad number of arguments (found separator --, but no commands)"),
            ("a b --prefix", "`range_end` and `--prefix` are mutually exclusive"),
        ] {
            assert_eq!(plan(line, &[]).unwrap_err(), Failure::args(text), "{line}");
        }
    }

    #[test]
    fn interactive_lines_are_watches_or_progress() {
        let read = |line: &str| Line::read(line, &Variables::default());
        assert!(matches!(read("watch foo --rev=3"), Ok(Line::Watch(_))));
        assert_eq!(read("progress"), Ok(Line::Progress));
        assert_eq!(read("bogus"), Ok(Line::Nothing("Invalid command bogus (only support watch)".into())));
        let text = "Invalid command watch (command type or key is not provided)";
        assert_eq!(read("watch"), Ok(Line::Nothing(text.into())));
        assert_eq!(read("watch foo --").unwrap_err().code, 128);
    }

    // A stream that was lost before the first event was opened again at the newest revision: what had happened in between
    // was never shown.
    #[tokio::test]
    async fn a_watch_from_now_on_keeps_its_place_before_its_first_event() {
        let known: Vec<&Flag> = options::FLAGS.iter().collect();
        let options = Options::read(&mut flags::parse(&known, &[]).unwrap(), &[]);
        let mut watcher = Watcher::new(&mut Session::new(options)).await.unwrap();
        let answer = |watch_id, revision, created| WatchResponse {
            header: Some(ResponseHeader { revision, ..Default::default() }),
            watch_id,
            created,
            ..Default::default()
        };
        for line in ["a", "b --rev=3", "c --rev=90"] {
            watcher.add(plan(line, &[]).unwrap()).await;
        }
        for watch_id in 0..3 {
            watcher.handle(Ok(answer(watch_id, 7, true))).await.unwrap();
        }
        let starts = |watcher: &Watcher| -> Vec<i64> {
            watcher.live.values().chain(&watcher.asked).map(|plan| plan.request.start_revision).collect()
        };
        assert_eq!(starts(&watcher), [8, 3, 90]);
        // Asked for again over another stream, of which nothing came either.
        watcher.asked = std::mem::take(&mut watcher.live).into_values().collect();
        for watch_id in 0..3 {
            watcher.handle(Ok(answer(watch_id, 20, true))).await.unwrap();
        }
        assert_eq!(starts(&watcher), [8, 3, 90]);
        watcher.handle(Ok(answer(0, 20, false))).await.unwrap();
        assert_eq!(starts(&watcher), [21, 3, 90], "a progress notification moves it on");
    }

    #[test]
    fn a_cancel_is_explained() {
        let cancel = |compact_revision, reason: &str| {
            cancel_text(&WatchResponse { compact_revision, cancel_reason: reason.into(), ..Default::default() })
        };
        assert_eq!(cancel(5, ""), "etcdserver: mvcc: required revision has been compacted");
        assert_eq!(cancel(0, "etcdserver: permission denied"), "etcdserver: permission denied");
        assert_eq!(cancel(0, "why not"), "rpc error: code = FailedPrecondition desc = why not");
        let refused =
            WatchResponse { created: true, canceled: true, cancel_reason: "why not".into(), ..Default::default() };
        assert_eq!(cancel_text(&refused), "why not");
    }
}
