use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use super::CALL_LIMIT;
use super::normal::Raw;
use super::scene::Scene;

impl Scene {
    /// Runs the client.
    pub fn ctl(&self, words: &[String], input: &str, lines: Option<usize>) -> Raw {
        let mut command = Command::new(&self.ctl);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_")) {
            command.env_remove(name);
        }
        let (variables, words): (Vec<&String>, Vec<&String>) =
            words.iter().partition(|word| word.starts_with("ETCDCTL_"));
        command.envs(variables.iter().filter_map(|word| word.split_once('=')));
        if !words.iter().any(|word| word.contains("--endpoints")) {
            command.env("ETCDCTL_ENDPOINTS", &self.endpoint);
        }
        let child = command.args(words).current_dir(&self.folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.stderr(Stdio::piped()).spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A program that reads no input closes the pipe; that is its right.
        let _ = stdin.write_all(input.as_bytes());
        match lines {
            Some(count) => {
                // What it reads may go on, so it stays open until the lines have come.
                let output = first_lines(child.stdout.take().expect("piped"), count);
                terminate(&child);
                drop(stdin);
                child.wait().expect("ends");
                Raw { output, ..Raw::default() }
            }
            None => {
                drop(stdin);
                let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process");
                let (ended, wait) = std::sync::mpsc::channel::<()>();
                // A call that does not end by itself is a difference, too.
                let guard = std::thread::spawn(move || {
                    if wait.recv_timeout(CALL_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                });
                let output = child.wait_with_output().expect("ends");
                drop(ended);
                guard.join().expect("no panic");
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                Raw { output: output.stdout, error, code: output.status.code().unwrap_or(-1) }
            }
        }
    }
}

fn first_lines(output: impl Read + Send + 'static, count: usize) -> Vec<u8> {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        for _ in 0..count {
            if reader.read_until(b'\n', &mut bytes).unwrap_or(0) == 0 {
                break;
            }
        }
        let _ = send.send(bytes);
    });
    receive.recv_timeout(CALL_LIMIT).expect("as many lines as the transcript says")
}

/// Not an interrupt: programs started by a job in the background inherit that those are ignored.
fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
}
