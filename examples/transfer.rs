//! Transfers between accounts as transactions that are tried again when another one was quicker.
//!
//! Ten clients move money between four accounts at once; the sum stays what it was. Each reads what it needs, and writes only if
//! none of it has changed since: what etcd's Go client calls software transactional memory.
//!
//! ```sh
//! cargo run --example transfer -- 127.0.0.1:23791
//! ```

use anyhow::{Context, ensure};
use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};
use futures::future::try_join_all;

const PREFIX: &str = "/example/accounts/";
const ACCOUNTS: usize = 4;
const CLIENTS: usize = 10;
const TRANSFERS: usize = 20;
const START: i64 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:23791".into());
    let mut client = Client::connect([endpoint], None).await?;
    for account in 0..ACCOUNTS {
        client.put(key(account), START.to_string(), None).await?;
    }
    let retries: usize = try_join_all((0..CLIENTS).map(|_| work(client.clone()))).await?.iter().sum();
    let accounts = client.get(PREFIX, Some(GetOptions::new().with_prefix())).await?;
    let mut sum = 0;
    for kv in accounts.kvs() {
        println!("{} has {}", kv.key_str()?, kv.value_str()?);
        sum += kv.value_str()?.parse::<i64>()?;
    }
    ensure!(sum == START * ACCOUNTS as i64, "the sum is {sum}");
    println!("{} transfers, {retries} of them tried again, the sum is still {sum}", CLIENTS * TRANSFERS);
    Ok(())
}

async fn work(mut client: Client) -> anyhow::Result<usize> {
    let mut retries = 0;
    for _ in 0..TRANSFERS {
        let from = fastrand::usize(..ACCOUNTS);
        let to = (from + fastrand::usize(1..ACCOUNTS)) % ACCOUNTS;
        while !transfer(&mut client, from, to, fastrand::i64(1..=30)).await? {
            retries += 1;
        }
    }
    Ok(retries)
}

/// Moves an amount; false when an account changed between reading and writing, and nothing was done.
async fn transfer(client: &mut Client, from: usize, to: usize, amount: i64) -> anyhow::Result<bool> {
    // Both in one transaction, so both as of one revision.
    let read = client.txn(Txn::new().and_then([from, to].map(|account| TxnOp::get(key(account), None)))).await?;
    let mut found = Vec::new();
    for answer in read.op_responses() {
        let TxnOpResponse::Get(answer) = answer else { continue };
        let kv = answer.kvs().first().context("an account")?;
        found.push((kv.value_str()?.parse::<i64>()?, kv.mod_revision()));
    }
    let [(has, from_revision), (other, to_revision)] = found[..] else { anyhow::bail!("two accounts were asked for") };
    if has < amount {
        return Ok(true);
    }
    let unchanged = [(from, from_revision), (to, to_revision)]
        .map(|(account, revision)| Compare::mod_revision(key(account), CompareOp::Equal, revision));
    let writes = [(from, has - amount), (to, other + amount)]
        .map(|(account, amount)| TxnOp::put(key(account), amount.to_string(), None));
    Ok(client.txn(Txn::new().when(unchanged).and_then(writes)).await?.succeeded())
}

fn key(account: usize) -> String {
    format!("{PREFIX}{account}")
}
