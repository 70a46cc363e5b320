use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio_util::sync::CancellationToken;
use watershed::client::Client;

use super::Recorder;
use crate::checkers::{Body, Compare, CompareTarget, Comparison, Kv, Outcome, RangeQuery, Request};

/// Keys everybody writes.
const KEYS: u32 = 12;

/// One client that reads and writes until it is told to stop.
pub struct Traffic {
    pub recorder: Arc<Recorder>,
    pub client: Client,
    pub member: u32,
    pub random: Rng,
    /// Time between two requests.
    pub pace: Duration,
    pub stop: CancellationToken,
}

fn key(number: u32) -> String {
    format!("k{number:02}")
}

impl Traffic {
    /// Sends requests at the pace until the stop.
    pub async fn run(mut self) {
        let id = self.recorder.client();
        let mut pace = tokio::time::interval(self.pace);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What this client read last, for conditions that often hold.
        let mut known: Option<Kv> = None;
        loop {
            tokio::select! {
                _ = pace.tick() => {}
                () = self.stop.cancelled() => return,
            }
            let request = self.request(known.as_ref());
            if let Outcome::Done { body: Body::Range { kvs, .. }, .. } =
                self.recorder.send(id, self.member, &self.client, request).await
            {
                known = self.random.choice(kvs).or(known);
            }
        }
    }

    fn key(&mut self) -> String {
        key(self.random.u32(0..KEYS))
    }

    fn put(&mut self, key: String) -> Request {
        Request::Put { key, value: self.recorder.value(), lease: 0, prev_kv: self.random.u8(0..4) == 0 }
    }

    fn read(&mut self) -> RangeQuery {
        let whole = self.random.bool();
        RangeQuery {
            key: if whole { "k".into() } else { self.key() },
            range_end: if whole { "l".into() } else { String::new() },
            limit: if whole && self.random.u8(0..4) == 0 { 3 } else { 0 },
            ..Default::default()
        }
    }

    fn request(&mut self, known: Option<&Kv>) -> Request {
        match self.random.u8(0..20) {
            0..6 => {
                let key = self.key();
                self.put(key)
            }
            6 | 7 => Request::Delete { key: self.key(), range_end: String::new(), prev_kv: self.random.bool() },
            8 => {
                let first = self.random.u32(0..KEYS);
                Request::Delete { key: key(first), range_end: key(first + 3), prev_kv: self.random.bool() }
            }
            9..12 => {
                let (key, revision) = known.map_or((self.key(), 0), |kv| (kv.key.clone(), kv.mod_revision));
                let target = CompareTarget::Mod(revision);
                let compare = Compare { key: key.clone(), target, comparison: Comparison::Equal };
                let failure = vec![Request::Range(RangeQuery { key: key.clone(), ..Default::default() })];
                Request::Txn { compares: vec![compare], success: vec![self.put(key)], failure }
            }
            12 => {
                let first = self.random.u32(0..KEYS);
                let success = (first..first + 3).map(|number| self.put(key(number % KEYS))).collect();
                Request::Txn { compares: Vec::new(), success, failure: Vec::new() }
            }
            13..16 => Request::Range(self.read()),
            16 | 17 => Request::Range(RangeQuery { serializable: true, ..self.read() }),
            18 => {
                let newest = self.recorder.newest();
                let revision = (newest - self.random.i64(0..300)).max(1);
                let serializable = self.random.bool();
                Request::Range(RangeQuery { revision, serializable, ..self.read() })
            }
            _ => Request::Range(RangeQuery { key: self.key(), ..Default::default() }),
        }
    }
}

/// Compacts old revisions again and again.
pub async fn compact(recorder: Arc<Recorder>, client: Client, every: Duration, keep: i64, stop: CancellationToken) {
    let id = recorder.client();
    let mut pace = tokio::time::interval(every);
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            () = stop.cancelled() => return,
        }
        let revision = recorder.newest() - keep;
        if revision > 1 {
            recorder.send(id, u32::MAX, &client, Request::Compact { revision }).await;
        }
    }
}
