use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration in the notation of etcd's flags: `300ms`, `1m30s`, `1.5h`, a bare `0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// The longest accepted, some 292 years, as in Go.
const NANOS_MAX: f64 = i64::MAX as f64;

impl FromStr for GoDuration {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SYNTAX: &str = "must be a duration such as 300ms, 10s or 1h30m";
        let text = text.strip_prefix('+').unwrap_or(text);
        if text == "0" {
            return Ok(Self::default());
        }
        if text.starts_with('-') {
            return Err("must not be negative");
        }
        let mut rest = text;
        let mut nanos = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(SYNTAX)?;
            let (number, tail) = rest.split_at(digits);
            let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let scale = match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(SYNTAX),
            };
            nanos += number.parse::<f64>().map_err(|_| SYNTAX)? * scale;
            rest = tail;
        }
        if text.is_empty() {
            return Err(SYNTAX);
        }
        if nanos >= NANOS_MAX {
            return Err("is too long");
        }
        Ok(Self(Duration::from_nanos(nanos.round() as u64)))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        match (seconds, nanos) {
            (0, 0) => write!(f, "0s"),
            (0, _) if nanos % 1_000_000 == 0 => write!(f, "{}ms", nanos / 1_000_000),
            (_, 0) if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            (_, 0) if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            _ => write!(f, "{}s", self.0.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_notation_is_read() {
        let cases = [("0", 0), ("300ms", 300), ("1m30s", 90_000), ("1.5h", 5_400_000), ("1h2m3.5s", 3_723_500)];
        for (text, millis) in cases {
            assert_eq!(text.parse(), Ok(GoDuration(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "5", "-1s", "1x", "s", "1..5s", "1e3s", "9999999999h", "1s ", "∞"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for millis in [0, 5, 1500, 20_000, 60_000, 90_000, 7_200_000] {
            let duration = GoDuration(Duration::from_millis(millis));
            assert_eq!(duration.to_string().parse(), Ok(duration), "{duration}");
        }
    }
}
