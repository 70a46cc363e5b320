use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::super::failure::{Exit, Failure, status_text};
use super::super::flags::Parsed;
use super::super::golang;
use super::super::session::{Session, show, within};
use crate::client::Client;
use crate::pb::etcdserverpb::{CompactionRequest, DefragmentRequest, DeleteRangeRequest, PutRequest, RangeRequest};
use crate::types::KeyRange;

/// How long cleaning up, compacting and defragmenting may take, each.
const TIDY: Duration = Duration::from_secs(30);
/// Exponents of the loads: small, medium, large, extra large.
const NAMES: [[&str; 2]; 4] = [["s", "small"], ["m", "medium"], ["l", "large"], ["xl", "xLarge"]];

/// One of the four loads, by the name the operator gave.
pub(super) fn choose<T: Copy>(parsed: &Parsed, loads: [T; 4]) -> Result<T, Failure> {
    let name = parsed.text("load");
    let at = NAMES.iter().position(|names| names.contains(&name));
    let at = at.ok_or_else(|| Failure::new(Exit::BadFeature, format!("unknown load option {name}")))?;
    Ok(loads[at])
}

/// A check that may begin: below its prefix there are no keys, which it would delete at its end.
pub(super) struct Check<'a> {
    pub(super) session: Session,
    /// Has a connection for each of the load's clients.
    pub(super) client: Client,
    pub(super) prefix: &'a str,
    parsed: &'a Parsed,
}

impl<'a> Check<'a> {
    pub(super) async fn new(session: Session, parsed: &'a Parsed, clients: usize) -> Result<Self, Failure> {
        let prefix = parsed.text("prefix");
        let mut session = session.with_connections(clients);
        let (key, range_end) = KeyRange::prefix(prefix.to_owned().into()).to_wire();
        let request = RangeRequest { key, range_end, limit: 1, ..Default::default() };
        let answer = session.patient(async |client| client.kv().range(request).await).await?;
        if !answer.kvs.is_empty() {
            let quoted = golang::quote(prefix.as_bytes());
            let text = format!("prefix {quoted} has keys. Delete with 'etcdctl del --prefix {prefix}' first");
            return Err(Failure::new(Exit::InvalidInput, text));
        }
        let client = session.client().await?;
        Ok(Self { session, client, prefix, parsed })
    }

    /// Deletes the keys of the check and returns the revision of that.
    pub(super) async fn clean(&self) -> Result<i64, String> {
        let (key, range_end) = KeyRange::prefix(self.prefix.to_owned().into()).to_wire();
        let request = DeleteRangeRequest { key, range_end, ..Default::default() };
        let answer = within(TIDY, self.client.kv().delete_range(request)).await;
        let answer = answer.map_err(|status| status_text(&status))?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// Compacts up to where the keys were deleted and defragments, where the operator asked for that.
    pub(super) async fn tidy(&self, deleted: Option<i64>) -> Result<(), Failure> {
        if let Some(revision) = deleted.filter(|_| self.parsed.bool("auto-compact")) {
            compact(&self.client, revision).await?;
        }
        if self.parsed.bool("auto-defrag") {
            defragment(&self.session).await?;
        }
        Ok(())
    }
}

async fn compact(client: &Client, revision: i64) -> Result<(), Failure> {
    show(format!("Compacting with revision {revision}\n"))?;
    let request = CompactionRequest { revision, physical: true };
    within(TIDY, client.kv().compact(request)).await.map_err(|status| Failure::call(&status))?;
    show(format!("Compacted with revision {revision}\n"))
}

async fn defragment(session: &Session) -> Result<(), Failure> {
    for endpoint in &session.options.endpoints {
        let quoted = golang::quote(endpoint.as_bytes());
        show(format!("Defragmenting {quoted}\n"))?;
        let client = Session::with_endpoints(session.options.clone(), std::slice::from_ref(endpoint)).client().await?;
        let answer = within(TIDY, client.maintenance().defragment(DefragmentRequest {})).await;
        answer.map_err(|status| Failure::call(&status))?;
        show(format!("Defragmented {quoted}\n"))?;
    }
    Ok(())
}

/// A put below `prefix`: a random number, then zeros up to `key_bytes`.
pub(super) fn put(prefix: &str, key_bytes: usize, value: &bytes::Bytes) -> PutRequest {
    let mut key = prefix.as_bytes().to_vec();
    let end = key.len() + key_bytes;
    key.extend_from_slice(&fastrand::u64(..).to_be_bytes());
    key.resize(end, 0);
    PutRequest { key: key.into(), value: value.clone(), ..Default::default() }
}

/// What the puts of a check came to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Summary {
    pub(super) per_second: f64,
    pub(super) slowest: f64,
    pub(super) deviation: f64,
    /// How often each error came.
    pub(super) errors: BTreeMap<String, u64>,
}

impl Summary {
    fn of(seconds: &[f64], elapsed: Duration, errors: BTreeMap<String, u64>) -> Self {
        let count = seconds.len() as f64;
        let mean = seconds.iter().sum::<f64>() / count.max(1.0);
        let variance = seconds.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / count.max(1.0);
        Self {
            per_second: count / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            slowest: seconds.iter().copied().fold(0.0, f64::max),
            deviation: variance.sqrt(),
            errors,
        }
    }

    /// Says which errors came. Returns whether there were any.
    pub(super) fn show_errors(&self) -> Result<bool, Failure> {
        if self.errors.is_empty() {
            return Ok(false);
        }
        show("FAIL: too many errors\n")?;
        for (error, count) in &self.errors {
            show(format!("FAIL: ERROR({error}) -> {count}\n"))?;
        }
        Ok(true)
    }
}

/// Where the puts of a check come from.
pub(super) trait Puts {
    /// The next one, when its time has come; `None` at the end. May be dropped while it waits.
    async fn next(&mut self) -> Option<PutRequest>;
}

/// Sends the puts, up to `clients` at a time, and calls `done` after each.
pub(super) async fn send(client: &Client, clients: usize, puts: &mut impl Puts, mut done: impl FnMut()) -> Summary {
    let began = Instant::now();
    let (mut seconds, mut errors) = (Vec::new(), BTreeMap::new());
    let mut in_flight = FuturesUnordered::new();
    let mut over = false;
    while !over || !in_flight.is_empty() {
        // Both branches only wait.
        tokio::select! {
            put = puts.next(), if !over && in_flight.len() < clients => match put {
                Some(put) => in_flight.push(async move {
                    let began = Instant::now();
                    client.kv().put(put).await.map(|_| began.elapsed().as_secs_f64())
                }),
                None => over = true,
            },
            Some(outcome) = in_flight.next(), if !in_flight.is_empty() => {
                match outcome {
                    Ok(took) => seconds.push(took),
                    Err(status) => *errors.entry(status_text(&status)).or_insert(0) += 1,
                }
                done();
            }
        }
    }
    Summary::of(&seconds, began.elapsed(), errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_what_etcdctl_computes() {
        let summary = Summary::of(&[0.1, 0.2, 0.3, 0.4], Duration::from_secs(2), BTreeMap::new());
        assert_eq!((summary.per_second, summary.slowest), (2.0, 0.4));
        assert!((summary.deviation - 0.1118).abs() < 0.0001, "{summary:?}");
        assert_eq!(Summary::of(&[], Duration::from_secs(1), BTreeMap::new()), Summary::default());
    }
}
