use super::scene::Scene;
use super::transcript::AddLine;

impl Scene {
    /// A line of an answer, without what differs from run to run.
    pub fn normal(&self, line: &str, call: &str) -> String {
        let mut line = self.names.iter().fold(line.to_owned(), |line, (real, name)| line.replace(real, name));
        if line.starts_with("|Member ") {
            // A shorter id than the longest has spaces before it.
            line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        }
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
        if call.contains("Maintenance/") {
            for name in ["dbSize", "dbSizeInUse", "raftAppliedIndex", "raftIndex", "blob", "remaining_bytes"] {
                line = masked(&line, &format!("\"{name}\":"), ",");
            }
            // The text of an alarm is Go's, which puts one space or two.
            line = line.replace("  alarm:", " alarm:");
        }
        if call.contains("Maintenance/Hash ") {
            line = masked(&line, "\"hash\":", ",");
        }
        if line.contains("\"grantedTTL\"") {
            line = masked(&line, "\"TTL\":", ",");
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
pub struct Raw {
    pub output: Vec<u8>,
    pub error: String,
    pub code: i32,
}

impl Raw {
    /// As lines of a transcript. Bytes that are no text, and text without a last line end, are shown in hex, after the
    /// ids among them have been cut out.
    pub fn shown(&self, ids: &[u64], places: &[(String, String)]) -> String {
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
