//! Flags, variables and the configuration file: parsing ends in a configuration or in an error that has a text.
#![no_main]

use std::ffi::OsString;
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use watershed::config::{GoDuration, Variables, parse_gateway_config, parse_proxy_config, parse_server_config};

fn told<T>(outcome: Result<T, impl std::fmt::Display>) {
    if let Err(error) = outcome {
        assert!(!error.to_string().is_empty());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let lines = || text.lines().map(OsString::from).collect::<Vec<_>>();
    match kind % 6 {
        // Reading files of these names is no business of a fuzz target.
        0 if !text.contains("config-file") => told(parse_server_config(&lines(), &Variables::none())),
        1 if !text.contains("CONFIG_FILE") => {
            let values = text.lines().filter_map(|line| line.split_once('='));
            let values = values.map(|(name, value)| (format!("ETCD_{name}"), OsString::from(value)));
            told(parse_server_config(&[], &Variables::new("ETCD_", values)));
        }
        2 => told(parse_proxy_config(&lines())),
        3 => told(parse_gateway_config(&lines())),
        4 => drop(text.parse::<GoDuration>()),
        5 => {
            let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
            file.write_all(rest).expect("a file");
            let mut flag = OsString::from("--config-file=");
            flag.push(file.path());
            told(parse_server_config(&[flag], &Variables::none()));
        }
        _ => {}
    }
});
