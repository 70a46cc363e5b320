use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall-clock time of a log line, shown as RFC 3339 UTC with microseconds, without the zeros at their end, as etcd does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timestamp(Duration);

impl Timestamp {
    #[allow(clippy::disallowed_methods, reason = "log lines carry wall time; nothing decides by it")]
    pub(super) fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, hour, minute, second) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        let (mut micros, mut digits) = (self.0.subsec_micros(), 6);
        if micros > 0 {
            while micros.is_multiple_of(10) {
                micros /= 10;
                digits -= 1;
            }
            write!(f, ".{micros:0digits$}")?;
        }
        f.write_str("Z")
    }
}

impl Timestamp {
    /// The form that names of rotated files have: `2006-01-02T15-04-05.000`.
    pub(super) fn in_file_names(&self) -> String {
        let (year, month, day, hour, minute, second) = self.civil();
        let millis = self.0.subsec_millis();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{millis:03}")
    }

    /// This time so many days ago.
    pub(super) fn days_before(&self, days: u64) -> Self {
        Self(self.0.saturating_sub(Duration::from_secs(days.saturating_mul(86_400))))
    }

    fn civil(&self) -> (u64, u64, u64, u64, u64, u64) {
        let seconds = self.0.as_secs();
        let (year, month, day) = civil_date(seconds / 86_400);
        (year, month, day, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
    }
}

/// Seconds since 1970, for metrics that say when something happened.
#[allow(clippy::disallowed_methods, reason = "shown to operators; nothing decides by it")]
pub fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}

/// Year, month and day of a count of days since 1970-01-01, by 400-year eras that start on the first of March.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants_are_shown_in_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(Timestamp(Duration::from_secs(seconds)).to_string(), text);
        }
        assert_eq!(Timestamp(Duration::new(1, 2_000)).to_string(), "1970-01-01T00:00:01.000002Z");
        assert_eq!(Timestamp(Duration::new(1, 500_000_000)).to_string(), "1970-01-01T00:00:01.5Z");
        assert_eq!(Timestamp(Duration::new(1, 120_000_000)).to_string(), "1970-01-01T00:00:01.12Z");
        assert_eq!(Timestamp(Duration::new(1, 7_000_000)).in_file_names(), "1970-01-01T00-00-01.007");
    }
}
