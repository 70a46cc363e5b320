use super::error::Refusal;
use super::hash_kv::HashedFile;
use crate::bolt::SnapshotStatus;

/// Exit code for a format that does not exist or does not show this.
const BAD_FEATURE: u8 = 4;

/// The formats of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Printer {
    Simple,
    Fields,
    Json,
    Table,
    Protobuf,
}

impl Printer {
    pub(super) fn named(name: &str) -> Result<Self, Refusal> {
        match name {
            "simple" => Ok(Self::Simple),
            "fields" => Ok(Self::Fields),
            "json" => Ok(Self::Json),
            "table" => Ok(Self::Table),
            "protobuf" => Ok(Self::Protobuf),
            _ => Err(Refusal::new(BAD_FEATURE, "unsupported output format")),
        }
    }

    pub(super) fn status(self, status: &SnapshotStatus) -> Result<String, Refusal> {
        let SnapshotStatus { hash, revision, total_keys, total_bytes, version } = status;
        let version = version.as_deref().unwrap_or_default();
        match self {
            Self::Fields => Ok(format!(
                "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {total_keys}\n\"Size\" : {total_bytes}\n\
                 \"Version\" : {version}\n"
            )),
            Self::Json => Ok(format!(
                "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{total_keys},\"totalSize\":{total_bytes},\
                 \"version\":{}}}\n",
                serde_json::Value::from(version)
            )),
            _ => {
                let cells = [
                    format!("{hash:x}"),
                    revision.to_string(),
                    total_keys.to_string(),
                    decimal_size(*total_bytes),
                    version.to_owned(),
                ];
                self.row(&["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"], &cells)
            }
        }
    }

    pub(super) fn hash_kv(self, found: &HashedFile) -> Result<String, Refusal> {
        let HashedFile { hash, hash_revision, compact_revision } = found;
        match self {
            Self::Fields => Ok(format!(
                "\"Hash\" : {hash}\n\"Hash revision\" : {hash_revision}\n\"Compact revision\" : {compact_revision}\n"
            )),
            Self::Json => Ok(format!(
                "{{\"hash\":{hash},\"hashRevision\":{hash_revision},\"compactRevision\":{compact_revision}}}\n"
            )),
            _ => {
                let cells = [hash.to_string(), hash_revision.to_string(), compact_revision.to_string()];
                self.row(&["HASH", "HASH REVISION", "COMPACT REVISION"], &cells)
            }
        }
    }

    fn row(self, heads: &[&str], cells: &[String]) -> Result<String, Refusal> {
        match self {
            Self::Table => Ok(table(heads, cells)),
            Self::Protobuf => Err(Refusal::new(BAD_FEATURE, "protobuf not supported as output format")),
            _ => Ok(format!("{}\n", cells.join(", "))),
        }
    }
}

/// A box of one row: heads centred, cells to the right.
fn table(heads: &[&str], cells: &[String]) -> String {
    let widths: Vec<usize> = heads.iter().zip(cells).map(|(head, cell)| head.len().max(cell.len())).collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", parts.join(middle))
    };
    let heads: Vec<String> = heads.iter().zip(&widths).map(|(head, &width)| format!(" {head:^width$} ")).collect();
    let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:>width$} ")).collect();
    let (top, middle, bottom) = (rule("┌", "┬", "┐"), rule("├", "┼", "┤"), rule("└", "┴", "┘"));
    format!("{top}│{}│\n{middle}│{}│\n{bottom}", heads.join("│"), cells.join("│"))
}

/// Bytes in decimal units, two digits: `20 kB`, `1.1 GB`.
fn decimal_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1000.0 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1000.0, next);
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 && unit != "B" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    // What etcdutl 3.7.1 prints for these values.
    #[test]
    fn every_format_is_etcdutls() {
        let status = SnapshotStatus {
            hash: 0xf6a6_9111,
            revision: Revision(17),
            total_keys: 2,
            total_bytes: 20_480,
            version: Some("3.7.0".into()),
        };
        let shown = |name: &str| Printer::named(name).and_then(|printer| printer.status(&status));
        assert_eq!(shown("simple").unwrap(), "f6a69111, 17, 2, 20 kB, 3.7.0\n");
        let json = r#"{"hash":4138111249,"revision":17,"totalKey":2,"totalSize":20480,"version":"3.7.0"}"#;
        assert_eq!(shown("json").unwrap(), format!("{json}\n"));
        let fields = "\"Hash\" : 4138111249\n\"Revision\" : 17\n\"Keys\" : 2\n\"Size\" : 20480\n\"Version\" : 3.7.0\n";
        assert_eq!(shown("fields").unwrap(), fields);
        assert_eq!(
            shown("table").unwrap(),
            "┌──────────┬──────────┬────────────┬────────────┬─────────┐\n\
             │   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │\n\
             ├──────────┼──────────┼────────────┼────────────┼─────────┤\n\
             │ f6a69111 │       17 │          2 │      20 kB │   3.7.0 │\n\
             └──────────┴──────────┴────────────┴────────────┴─────────┘\n"
        );
        assert_eq!(shown("protobuf").unwrap_err().code, 4);
        assert_eq!(shown("xml").unwrap_err(), Refusal::new(4, "unsupported output format"));
        let hash = HashedFile { hash: 4_223_822_702, hash_revision: Revision(17), compact_revision: Revision(5) };
        assert_eq!(Printer::Simple.hash_kv(&hash).unwrap(), "4223822702, 17, 5\n");
        let json = r#"{"hash":4223822702,"hashRevision":17,"compactRevision":5}"#;
        assert_eq!(Printer::Json.hash_kv(&hash).unwrap(), format!("{json}\n"));
    }

    #[test]
    fn sizes_are_decimal() {
        for (bytes, text) in
            [(0, "0 B"), (9, "9 B"), (999, "999 B"), (1500, "1.5 kB"), (20_480, "20 kB"), (1_073_741_824, "1.1 GB")]
        {
            assert_eq!(decimal_size(bytes), text);
        }
    }
}
