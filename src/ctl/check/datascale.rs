use bytes::Bytes;

use super::super::failure::{Exit, Failure};
use super::super::flags::Parsed;
use super::super::session::{Session, show};
use super::super::terminal;
use super::load::{self, Check, Puts};
use super::memory;
use crate::pb::etcdserverpb::PutRequest;

const KEY_BYTES: usize = 512;
const VALUE_BYTES: usize = 512;

#[derive(Clone, Copy, Debug)]
struct Load {
    pairs: u64,
    clients: usize,
}

const LOADS: [Load; 4] = [
    Load { pairs: 10_000, clients: 50 },
    Load { pairs: 100_000, clients: 200 },
    Load { pairs: 1_000_000, clients: 500 },
    Load { pairs: 3_000_000, clients: 1000 },
];

struct Counted<'a> {
    prefix: &'a str,
    value: Bytes,
    left: u64,
}

impl Puts for Counted<'_> {
    async fn next(&mut self) -> Option<PutRequest> {
        self.left = self.left.checked_sub(1)?;
        Some(load::put(self.prefix, KEY_BYTES, &self.value))
    }
}

pub(in super::super) async fn run(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let load = load::choose(parsed, LOADS)?;
    let check = Check::new(session, parsed, load.clients).await?;
    let before = resident(&check.session, "before").await?;

    let bytes = KEY_BYTES + VALUE_BYTES;
    show(format!(
        "Start data scale check for work load [{} key-value pairs, {bytes} bytes per key-value, {} concurrent \
         clients].\n",
        load.pairs, load.clients
    ))?;
    let bar = terminal::bar(load.pairs);
    let mut puts = Counted { prefix: check.prefix, value: vec![0; VALUE_BYTES].into(), left: load.pairs };
    let summary = load::send(&check.client, load.clients, &mut puts, || bar.inc(1)).await;
    bar.finish_and_clear();

    let after = resident(&check.session, "after").await?;
    let deleted = check.clean().await.map_err(|error| Failure::new(Exit::Error, error))?;
    check.tidy(Some(deleted)).await?;
    if summary.show_errors()? {
        return Err(Failure::silent(Exit::Error as u8));
    }
    let used = (after - before) / (1024.0 * 1024.0);
    show(format!("PASS: Approximate system memory used : {used:.2} MB.\n"))
}

/// Memory of the first endpoint, in bytes.
async fn resident(session: &Session, when: &str) -> Result<f64, Failure> {
    match memory::resident(session).await {
        Ok(bytes) => Ok(bytes),
        Err(why) => {
            show(format!("{why}\nFAIL: Could not read process_resident_memory_bytes {when} the put operations.\n"))?;
            Err(Failure::silent(Exit::Error as u8))
        }
    }
}
