//! Any bytes as the body of any method of a proxy with a namespace, in front of an upstream that records what it gets: nothing
//! that goes up reaches beyond the namespace, its leases and their marks.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libfuzzer_sys::fuzz_target;
use signal_hook::consts::SIGPIPE;
use watershed::proxy::fuzzing::{Proxy, Shape};

/// Calls of one proxy: each is checked after every later one, too.
const CALLS_MAX: usize = 64;

fuzz_target!(|data: &[u8]| {
    thread_local!(static PROXY: RefCell<(Proxy, usize)> = {
        // A Rust program ignores it from its start on; this one starts in libFuzzer.
        signal_hook::flag::register(SIGPIPE, Arc::<AtomicBool>::default()).expect("a signal that may be caught");
        RefCell::new((Proxy::new(), 0))
    });
    let [method, shape, rest @ ..] = data else { return };
    let piece_bytes = if shape & 16 == 0 { rest.len() + 5 } else { usize::from(shape >> 5) + 1 };
    let shape = match shape % 16 {
        0..12 => Shape::Plain,
        12 => Shape::Gzip,
        13 | 14 => Shape::Behind(usize::from(shape >> 4)),
        _ => Shape::Raw,
    };
    PROXY.with_borrow_mut(|(proxy, calls)| {
        if *calls == CALLS_MAX {
            (*proxy, *calls) = (Proxy::new(), 0);
        }
        *calls += 1;
        proxy.call(usize::from(*method), shape, rest, piece_bytes);
    });
});
