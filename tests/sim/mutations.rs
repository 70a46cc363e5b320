//! Every kind of check can fail: for each there is a fault planted in the simulator, and a run that finds it.
//! docs/reliability.md lists them.

use watershed::core::raft::{PlantedFault, plant};

use super::context::{Mutation, Settings};
use super::{cluster, scripts, settings};

/// What is planted, how many members it takes, and the words of the check that finds it.
const PLANTED: [(Mutation, usize, &[&str]); 17] = [
    (Mutation::DiskLies, 1, &["does not start", "is committed", "came before it", "the log says"]),
    (Mutation::ReadWithoutIndex, 3, &["a read shows"]),
    (Mutation::ReadBeforeApplied, 3, &["a read shows"]),
    (
        Mutation::SkipEntry,
        3,
        &["is in the log twice", "the log says", "instead of", "differs", "was cancelled", "shows", "is accused"],
    ),
    (Mutation::HastyLessor, 1, &["although it was promised", "it ended at"]),
    (Mutation::LessorStays, 3, &["although it was promised", "it ended at"]),
    (Mutation::SleepyLessor, 3, &["live on without a renewal"]),
    (Mutation::LostEvents, 1, &["a watch of", "were not delivered"]),
    (Mutation::NoJump, 3, &["a watch of", "were not delivered", "a watcher has heard"]),
    (Mutation::DeafConsensus, 3, &["raft counts", "did not answer in time", "has applied", "healthy cluster"]),
    (Mutation::WrongMember, 3, &["an honest message was refused"]),
    (Mutation::HastyRetry, 3, &["is in the log twice"]),
    (
        Mutation::InDriver(PlantedFault::ReportBeforeSync),
        1,
        &["synced entries were lost", "is committed", "came before it"],
    ),
    (
        Mutation::InDriver(PlantedFault::ReadsLocalBeforeReplay),
        1,
        &["a read shows", "although it was promised", "is accused"],
    ),
    (
        Mutation::InDriver(PlantedFault::ReadsLocalWithLearner),
        1,
        &["a read shows", "while its reads were local", "is accused"],
    ),
    (Mutation::InDriver(PlantedFault::ComparesAcrossCompactions), 3, &["is accused, and its state is right"]),
    (Mutation::InDriver(PlantedFault::RemovedPeersAccepted), 3, &["takes messages of a removed member"]),
];

#[test]
fn planted_faults_are_found() {
    quiet_planted_faults();
    let mut found = Vec::new();
    for (mutation, members, words) in PLANTED {
        let failure = (1..=400).find_map(|seed| {
            let settings = Settings { members, healthy: true, mutation: Some(mutation), ..settings(seed) };
            // On a thread whose name keeps the panic quiet.
            let run = std::thread::Builder::new().name("planted".into()).spawn(move || cluster::run(&settings));
            let failure = run.expect("a thread").join().err()?;
            let text = failure.downcast_ref::<String>().cloned().unwrap_or_else(|| "another panic".into());
            Some((seed, text))
        });
        let Some((seed, text)) = failure else { panic!("{mutation:?} was not found in 400 simulations") };
        assert!(words.iter().any(|words| text.contains(words)), "{mutation:?} was found by another check: {text}");
        let text: String = text.chars().take(120).collect();
        found.push(format!("{mutation:?} (simulation {seed}): {text}"));
    }
    println!("{}", found.join("\n"));
}

/// Faults that chance hardly ever makes visible, and the script that does.
#[test]
fn planted_faults_are_found_by_scripts() {
    quiet_planted_faults();
    type Script = fn();
    let planted: [(PlantedFault, Script, &str); 2] = [
        (PlantedFault::UnlistedPeersRefused, scripts::follows_an_unknown_leader, "was not heard"),
        (PlantedFault::CompactionOverSnapshot, scripts::compacts_over_a_snapshot, "does not finish the compaction"),
    ];
    for (fault, script, words) in planted {
        let run = move || {
            plant(Some(fault));
            script();
        };
        let run = std::thread::Builder::new().name("planted".into()).spawn(run);
        let failure = run.expect("a thread").join().expect_err("the fault was not found");
        let text = failure.downcast_ref::<String>().map(String::as_str).or(failure.downcast_ref::<&str>().copied());
        assert!(text.is_some_and(|text| text.contains(words)), "{fault:?} was found by another check: {text:?}");
    }
}

/// Keeps panics quiet that are expected.
fn quiet_planted_faults() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some("planted") {
                before(info);
            }
        }));
    });
}
