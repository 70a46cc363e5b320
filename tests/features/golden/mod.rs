//! What etcdctl 3.7.1 and etcd 3.7.1 answered to the calls in `tests/interop/golden/`, against what our client and our
//! member answer: output, standard error and exit code, after ids, times and ports have got names.
//!
//! A transcript is a list of blocks. `$` begins a call, `<` a line of its standard input, `|` begins a line of
//! output, `!` one of standard error, `=` the exit code unless it is 0. Where we differ on purpose, `~` and a reason
//! follow, and then our own lines. `$ 3 lines of watch k` ends a call that goes on by itself; `$ POST /v3/…` asks the
//! JSON gateway. `{lease1}` is the first lease that the transcript granted.
//!
//! `WATERSHED_TEST_SERVER=etcd WATERSHED_GOLDEN_CTL=etcdctl` compares the transcripts with those programs instead, and
//! `WATERSHED_GOLDEN_WRITE=1` beside them records what they answer.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use watershed::pb::etcdserverpb::StatusRequest;

use crate::harness::{Deployment, PATIENCE, Target, run};

/// How long one call may take before it is ended.
const CALL_LIMIT: Duration = Duration::from_secs(30);

macro_rules! transcripts {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            compare(stringify!($name));
        }
    )*};
}

transcripts!(command_line, kv, txn, watch, lease, cluster, concurrency, auth, downgrade);

/// One call and what was answered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Block {
    /// Comments and empty lines before it.
    head: String,
    call: String,
    input: String,
    stock: String,
    /// The reason and our answer, where it is another.
    ours: Option<(String, String)>,
}

fn parse(text: &str) -> (Vec<Block>, String) {
    let (mut blocks, mut head): (Vec<Block>, String) = (Vec::new(), String::new());
    for line in text.lines() {
        let line = format!("{line}\n");
        match (line.as_bytes()[0], blocks.last_mut().filter(|_| head.is_empty())) {
            (b'$', _) => {
                let (head, call) = (std::mem::take(&mut head), line[2..].trim_end().to_owned());
                blocks.push(Block { head, call, ..Block::default() });
            }
            (b'<', Some(block)) => block.input += line[1..].strip_prefix(' ').unwrap_or(&line[1..]),
            (b'~', Some(block)) => block.ours = Some((line, String::new())),
            (b'|' | b'!' | b'=', Some(Block { ours: Some((_, ours)), .. })) => *ours += &line,
            (b'|' | b'!' | b'=', Some(block)) => block.stock += &line,
            _ => head += &line,
        }
    }
    (blocks, head)
}

fn text(blocks: &[Block], tail: &str) -> String {
    let mut text = String::new();
    for Block { head, call, input, stock, ours } in blocks {
        let _ = writeln!(text, "{head}$ {call}");
        input.lines().for_each(|line| text += &format!("< {line}").trim_end().to_owned().add_line());
        text += stock;
        if let Some((reason, answer)) = ours {
            text += &format!("{reason}{answer}");
        }
    }
    text + tail
}

trait AddLine {
    fn add_line(self) -> Self;
}

impl AddLine for String {
    fn add_line(mut self) -> Self {
        self.push('\n');
        self
    }
}

fn compare(name: &str) {
    let stock = std::env::var_os("WATERSHED_GOLDEN_CTL").map(PathBuf::from);
    let flags: &[&str] = if name == "auth" { &["--bcrypt-cost=4"] } else { &[] };
    run(Target::Core, flags, async |deployment: &mut Deployment| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/interop/golden/{name}.txt"));
        let (mut blocks, tail) = parse(&std::fs::read_to_string(&path).expect("a transcript"));
        let ctl = deployment.folder.path().join("etcdctl");
        symlink(stock.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_watershed"))), &ctl).expect("link");
        let mut scene = Scene::new(deployment, ctl).await;
        let mut differences = String::new();
        for block in &mut blocks {
            let answer = scene.answer(&block.call, &block.input);
            let wanted = match &block.ours {
                Some((_, ours)) if stock.is_none() => ours,
                _ => &block.stock,
            };
            if answer != *wanted {
                let _ = write!(differences, "$ {}\n--- wanted\n{wanted}--- got\n{answer}", block.call);
            }
            if stock.is_some() {
                block.stock = answer;
            }
        }
        if stock.is_some() && std::env::var_os("WATERSHED_GOLDEN_WRITE").is_some() {
            std::fs::write(&path, text(&blocks, &tail)).expect("written");
        } else {
            assert!(differences.is_empty(), "{name}:\n{differences}");
        }
    });
}

/// A member, its client, and the names of what differs from run to run.
struct Scene {
    ctl: PathBuf,
    endpoint: String,
    folder: PathBuf,
    names: Vec<(String, String)>,
    leases: usize,
    members: usize,
    ids: [u64; 2],
}

impl Scene {
    async fn new(deployment: &Deployment, ctl: PathBuf) -> Self {
        let status = deployment.client.maintenance().status(StatusRequest {}).await.expect("a status").into_inner();
        let header = status.header.expect("a header");
        let mut scene = Self {
            ctl,
            endpoint: deployment.endpoint.clone(),
            folder: deployment.folder.path().to_owned(),
            names: Vec::new(),
            leases: 0,
            members: 1,
            ids: [header.cluster_id, header.member_id],
        };
        scene.name_id("cluster", header.cluster_id);
        scene.name_id("member1", header.member_id);
        scene.names.push((deployment.endpoint.clone(), "{endpoint}".to_owned()));
        scene.names.push((deployment.peer_url(), "{peer}".to_owned()));
        scene.names.push((scene.folder.display().to_string(), "{folder}".to_owned()));
        scene
    }

    fn name_id(&mut self, name: &str, id: u64) {
        self.names.push((id.to_string(), format!("{{{name}}}")));
        self.names.push((format!("{id:x}"), format!("{{{name}:x}}")));
    }

    /// The call with the real ids in place of names.
    fn real(&self, call: &str) -> String {
        self.names.iter().fold(call.to_owned(), |call, (real, name)| call.replace(name, real))
    }

    fn answer(&mut self, call: &str, input: &str) -> String {
        let real = self.real(call);
        let (lines, real) = match real.split_once(" lines of ") {
            Some((count, rest)) => (count.parse().ok(), rest.to_owned()),
            None => (None, real),
        };
        let raw = match real.strip_prefix("POST ") {
            Some(request) => self.post(request, lines),
            None => self.ctl(&words(&real), &self.real(input), lines),
        };
        let answer = raw.shown(&self.ids, &self.names[4..6]);
        self.learn(&answer);
        let mut lines: Vec<String> = answer.lines().map(|line| self.normal(line, call)).collect();
        if call.starts_with("member list") && !call.contains("fields") {
            // In the order of ids, which are different each time.
            lines.sort();
        }
        lines.concat()
    }

    fn ctl(&self, words: &[String], input: &str, lines: Option<usize>) -> Raw {
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
                interrupt(&child);
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

    fn post(&self, request: &str, lines: Option<usize>) -> Raw {
        let (path, body) = request.split_once(' ').unwrap_or((request, "{}"));
        let mut stream = TcpStream::connect(&self.endpoint).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.endpoint,
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("written");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        let code = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(-1);
        let mut chunked = false;
        loop {
            line.clear();
            reader.read_line(&mut line).expect("a header");
            chunked |= line.to_lowercase().starts_with("transfer-encoding: chunked");
            if line.trim().is_empty() {
                break;
            }
        }
        let mut output = Vec::new();
        let enough =
            |output: &Vec<u8>| lines.is_some_and(|lines| output.iter().filter(|&&byte| byte == b'\n').count() >= lines);
        while chunked && !enough(&output) {
            line.clear();
            reader.read_line(&mut line).expect("a chunk's length");
            let mut chunk = vec![0; usize::from_str_radix(line.trim(), 16).expect("hex") + 2];
            reader.read_exact(&mut chunk).expect("a chunk");
            chunk.truncate(chunk.len() - 2);
            if chunk.is_empty() {
                break;
            }
            output.extend(chunk);
        }
        if !chunked {
            reader.read_to_end(&mut output).expect("a body");
        }
        Raw { output, error: String::new(), code: if code == 200 { 0 } else { code } }
    }

    /// Gives names to the leases and members that an answer is the first to mention.
    fn learn(&mut self, answer: &str) {
        for line in answer.lines() {
            let word = |before: &str, after: &str| {
                let rest = line.split_once(before)?.1;
                Some(rest.split_once(after)?.0.trim().to_owned())
            };
            let granted = word("|lease ", " granted with TTL(").filter(|_| !line.contains("remaining"));
            let lease = granted
                .and_then(|id| u64::from_str_radix(&id, 16).ok())
                .or_else(|| word("\"ID\":", ",\"TTL\"")?.trim_matches('"').parse().ok())
                .or_else(|| line.strip_prefix("|\"ID\" : ")?.parse().ok())
                .filter(|id| *id != 0 && !self.names.iter().any(|(real, _)| *real == id.to_string()));
            if let Some(id) = lease {
                self.leases += 1;
                let name = format!("lease{}", self.leases);
                self.names.push((format!("{id:016x}"), format!("{{{name}}}")));
                self.names.push((id.to_string(), format!("{{{name}:d}}")));
            }
            if let Some(id) = word("|Member ", " added ").and_then(|id| u64::from_str_radix(&id, 16).ok()) {
                self.members += 1;
                self.name_id(&format!("member{}", self.members), id);
            }
        }
    }

    fn normal(&self, line: &str, call: &str) -> String {
        let mut line = self.names.iter().fold(line.to_owned(), |line, (real, name)| line.replace(real, name));
        for (before, after) in [
            ("took = ", ""),
            ("\"took\":\"", "\""),
            ("\"Took\" : ", ""),
            ("]. took ", ""),
            ("remaining(", "s)"),
            ("\"ttl\":", ","),
        ] {
            line = masked(&line, before, after);
        }
        line = line.replace("Member  ", "Member ");
        if let Some(list) = line.strip_prefix("|ETCD_INITIAL_CLUSTER=") {
            // In the order of ids, which are different each time.
            let mut members: Vec<&str> = list.trim_matches('"').split(',').collect();
            members.sort_unstable();
            line = format!("|ETCD_INITIAL_CLUSTER=\"{}\"", members.join(","));
        }
        if call.contains("endpoint status") {
            for name in ["dbSize", "dbSizeInUse", "raftIndex", "raftAppliedIndex"] {
                line = masked(&line, &format!("\"{name}\":"), ",");
            }
            for name in ["DBSize", "DBSizeInUse", "RaftIndex", "RaftAppliedIndex"] {
                line = masked(&line, &format!("\"{name}\" : "), "");
            }
            line = cells(&line, ", ", &[4, 5, 6, 11, 12]);
            line = cells(&line, "│", &[5, 6, 7, 12, 13]);
        }
        if call.contains("endpoint health") {
            line = cells(&line, "│", &[3]);
        }
        if line.contains(['│', '─']) {
            // Columns are as wide as what is in them.
            line = line.split('│').map(str::trim).collect::<Vec<_>>().join("│");
            while line.contains("──") {
                line = line.replace("──", "─");
            }
        }
        explained(&line).trim_end().to_owned().add_line()
    }
}

/// A line of a usage text without its explanation, which is not etcdctl's.
fn explained(line: &str) -> String {
    let Some(flag) = line.strip_prefix("! ").filter(|text| text.trim_start().starts_with('-')) else {
        return line.to_owned();
    };
    let (start, text) =
        flag.split_at(flag.len() - flag.trim_start().len() + flag.trim_start().find("   ").unwrap_or(0));
    let default = text.rfind("(default ").filter(|_| text.ends_with(')')).map_or("", |at| &text[at..]);
    format!("! {start}   {default}")
}

/// Replaces what stands between `before` and `after`.
fn masked(line: &str, before: &str, after: &str) -> String {
    let Some((head, rest)) = line.split_once(before) else { return line.to_owned() };
    let end = if after.is_empty() { rest.len() } else { rest.find(after).unwrap_or(rest.len()) };
    format!("{head}{before}_{}", &rest[end..])
}

/// Masks cells of a row, by their number.
fn cells(line: &str, separator: &str, masked: &[usize]) -> String {
    let mut cells: Vec<&str> = line.split(separator).collect();
    if cells.len() > masked[masked.len() - 1] && !line.contains("ENDPOINT") {
        masked.iter().for_each(|&at| cells[at] = "_");
    }
    cells.join(separator)
}

/// What came back, byte for byte.
#[derive(Default)]
struct Raw {
    output: Vec<u8>,
    error: String,
    code: i32,
}

impl Raw {
    /// As lines of a transcript. Bytes that are no text, and text without a last line end, are shown in hex, after the
    /// ids among them have been cut out.
    fn shown(&self, ids: &[u64], places: &[(String, String)]) -> String {
        let mut shown = String::new();
        match std::str::from_utf8(&self.output) {
            Ok(text)
                if text.is_empty()
                    || (text.ends_with('\n') && !text.contains(|c: char| c < ' ' && c != '\n' && c != '\t')) =>
            {
                text.lines().for_each(|line| shown += &format!("|{line}\n"));
            }
            Ok(text) if text.starts_with('{') || text.starts_with("Password") => shown += &format!("|{text}\\\n"),
            _ => shown += &format!("|0x{}\n", hex(&self.output, ids, places)),
        }
        // Lines of the client's log: they have times and addresses, and are no part of the answer.
        let noise = |line: &&str| {
            !["{\"level\"", "latest balancer error", "warning: "].iter().any(|start| line.starts_with(start))
        };
        for line in self.error.lines().filter(noise) {
            shown += &format!("! {line}\n");
        }
        if self.code != 0 {
            shown += &format!("= {}\n", self.code);
        }
        shown
    }
}

/// Hex, with names in place of ids that stand there as protobuf writes them.
fn hex(bytes: &[u8], ids: &[u64], places: &[(String, String)]) -> String {
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for (id, name) in ids.iter().zip(["(cluster)", "(member)"]) {
        let mut varint = String::new();
        let mut left = *id;
        while left >= 0x80 {
            varint += &format!("{:02x}", (left & 0x7f) | 0x80);
            left >>= 7;
        }
        varint += &format!("{left:02x}");
        text = text.replace(&varint, name);
    }
    for (place, name) in places {
        let place: String = place.bytes().map(|byte| format!("{byte:02x}")).collect();
        text = text.replace(&place, name);
    }
    // The length of a message varies with the ids in it.
    if let Some(at) = text.find("08(member)").filter(|at| *at >= 2) {
        text.replace_range(at - 2..at, "(length)");
    }
    // The length of the header varies with them.
    match text.strip_prefix("0a").and_then(|rest| rest.get(2..)) {
        Some(rest) if rest.starts_with("08(cluster)") => format!("0a(length){rest}"),
        _ => text,
    }
}

/// Words as a shell splits them, with double quotes, single quotes and backslashes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut open, mut begun) = (String::new(), None, false);
    let mut letters = line.chars();
    while let Some(c) = letters.next() {
        match (c, open) {
            ('\\', None | Some('"')) => word.extend(letters.next()),
            (c, Some(quote)) if c == quote => open = None,
            ('"' | '\'', None) => (open, begun) = (Some(c), true),
            (' ', None) => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (c, _) => word.push(c),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
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

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
}

#[test]
fn transcripts_are_read_as_they_are_written() {
    let transcript = "# head\n\n$ get a\n|a\n|\n$ txn\n< x\n<\n! Error: EOF\n= 3\n~ because\n|y\n# end\n";
    let (blocks, tail) = parse(transcript);
    assert_eq!((blocks.len(), blocks[1].input.as_str()), (2, "x\n\n"));
    assert_eq!(text(&blocks, &tail), transcript);
    assert_eq!(words(r#"put "a b" 'c"d' \x ''"#), ["put", "a b", "c\"d", "x", ""]);
}
