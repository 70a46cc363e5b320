use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tonic::Status;

// A name that is text would be parsed for each call.
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// When the time of a request is up, however often it is sent; never where it was given none.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Of a request with this metadata, whose time begins now.
    pub fn of(headers: &HeaderMap) -> Self {
        Self(timeout(headers).and_then(|time| Instant::now().checked_add(time)))
    }

    /// Gives the request the time that is left, because it is sent again.
    ///
    /// # Errors
    /// When none is left; for the caller.
    pub fn renew(self, headers: &mut HeaderMap) -> Result<(), Status> {
        let Some(until) = self.0 else { return Ok(()) };
        let left = timeout_text(until.saturating_duration_since(Instant::now())).ok_or_else(time_is_up)?;
        headers.insert(&GRPC_TIMEOUT, left);
        Ok(())
    }

    pub(super) fn is_over(self) -> bool {
        self.0.is_some_and(|until| Instant::now() >= until)
    }
}

/// The time a request was given, as `grpc-timeout` has it: at most eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u32 = digits.parse().ok()?;
    let one = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(one * count)
}

/// The time that is left, as `grpc-timeout` has it; none when it is over.
fn timeout_text(left: Duration) -> Option<HeaderValue> {
    const COUNT_MAX: u128 = 99_999_999;
    let (micros, millis) = (left.as_micros(), left.as_millis());
    let (count, unit) = match (micros, millis) {
        (..=COUNT_MAX, _) => (micros, 'u'),
        (_, ..=COUNT_MAX) => (millis, 'm'),
        _ => (u128::from(left.as_secs()).min(COUNT_MAX), 'S'),
    };
    if count == 0 {
        return None;
    }
    HeaderValue::try_from(format!("{count}{unit}")).ok()
}

pub(super) fn time_is_up() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}
