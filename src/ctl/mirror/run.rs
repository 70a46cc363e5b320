use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;

use super::super::failure::Failure;
use super::super::flags::Parsed;
use super::super::options;
use super::super::session::{Session, show};
use super::destination::Destination;
use super::rename::Rename;
use super::source::Source;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};

/// How often the number of copied keys is shown.
const REPORT: Duration = Duration::from_secs(30);

pub(in super::super) async fn run(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [destination] = parsed.args.as_slice() else {
        return Err(Failure::args("make-mirror takes one destination argument"));
    };
    let there = String::from_utf8_lossy(destination).into_owned();
    session.options.usable()?;
    let user = options::user(parsed, ["dest-user", "dest-password"], "Destination Password: ")?;
    let rename = Rename::read(parsed)?;
    let mut options = session.options.for_destination(parsed)?;
    (options.user, options.token) = (user, None);
    let limit = options.command_timeout;
    let client = Session::with_endpoints(options, &[there]).client().await?;
    let ops_max = usize::try_from(parsed.uint("max-txn-ops")).unwrap_or(usize::MAX);
    let rev = parsed.int("rev");

    let total = Cell::new(0);
    let mut mirror = Mirror {
        source: Source::new(session.client().await?, rename.prefix.clone(), rev),
        destination: Destination::new(client, ops_max, limit),
        rename,
        total: &total,
    };
    // The first revision holds no change, so to begin with it is to begin with everything.
    let everything = rev <= 1;
    tokio::select! {
        outcome = mirror.run(everything) => outcome,
        outcome = report(&total) => outcome,
    }
}

async fn report(total: &Cell<u64>) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(REPORT).await;
        show(format!("{}\n", total.get()))?;
    }
}

struct Mirror<'a> {
    source: Source,
    destination: Destination,
    rename: Rename,
    /// Keys written and deleted.
    total: &'a Cell<u64>,
}

impl Mirror<'_> {
    async fn run(&mut self, everything: bool) -> Result<(), Failure> {
        if everything {
            self.copy().await?;
        }
        loop {
            let events = self.source.events().await?;
            self.follow(events).await?;
        }
    }

    /// Copies every key as it is at one revision.
    async fn copy(&mut self) -> Result<(), Failure> {
        let revision = self.source.fix_revision().await?;
        let mut from = Some(Bytes::new());
        while let Some(start) = from {
            let (pairs, next) = self.source.page(&start, revision).await?;
            for pair in pairs {
                self.put(pair).await?;
            }
            self.destination.commit().await?;
            from = next;
        }
        Ok(())
    }

    /// Repeats what happened, one transaction for each revision of the source.
    async fn follow(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        let mut revision = 0;
        for event in events {
            let kind = event.r#type();
            let Some(pair) = event.kv else { continue };
            if pair.mod_revision > revision && revision != 0 {
                self.destination.commit().await?;
                self.source.taken(revision);
            }
            revision = pair.mod_revision;
            match kind {
                EventType::Put => self.put(pair).await?,
                EventType::Delete => {
                    let key = self.rename.apply(&pair.key);
                    let delete = DeleteRangeRequest { key, ..Default::default() };
                    self.destination.add(Request::RequestDeleteRange(delete)).await?;
                    self.count();
                }
            }
        }
        self.destination.commit().await?;
        self.source.taken(revision);
        Ok(())
    }

    async fn put(&mut self, pair: KeyValue) -> Result<(), Failure> {
        let put = PutRequest { key: self.rename.apply(&pair.key), value: pair.value, ..Default::default() };
        self.destination.add(Request::RequestPut(put)).await?;
        self.count();
        Ok(())
    }

    fn count(&self) {
        self.total.set(self.total.get() + 1);
    }
}
