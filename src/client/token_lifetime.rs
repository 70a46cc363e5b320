use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;

/// An age below this says nothing about the lifetime of tokens: members count it in seconds.
const AGE_MIN: Duration = Duration::from_secs(1);
/// Pause after a renewal that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is known of how long the cluster accepts a token.
///
/// A signed token has its end in it. A simple one has not: members forget it some time after its last use, each member for
/// itself. The age at which one was refused bounds that time. A member that restarts forgets its tokens too, so the bound
/// grows a little with each token that was renewed within it.
#[derive(Debug, Default)]
pub(super) struct TokenLifetime {
    /// Least age at which a token was refused.
    refused_at: Option<Duration>,
}

impl TokenLifetime {
    /// When to renew a token that the cluster gives at this moment; none while nothing is known.
    pub(super) fn renew_at(&self, token: &HeaderValue, unix_seconds: i64, now: Instant) -> Option<Instant> {
        // Members cut off what is behind the second, and so does our clock: there may be a second less.
        let left = end_of(token).map(|end| end.saturating_sub(unix_seconds).saturating_sub(1));
        let signed = left.and_then(|left| u64::try_from(left).ok()).filter(|&left| left > 0);
        let signed = signed.map(|left| Duration::from_secs(left) * 2 / 3);
        let learned = self.refused_at.map(|age| age / 2);
        // Not far from the end of time, whatever a token says.
        signed.into_iter().chain(learned).min().and_then(|after| now.checked_add(after))
    }

    /// A token of this age was refused.
    pub(super) fn refused(&mut self, age: Duration) {
        if age >= AGE_MIN {
            self.refused_at = Some(self.refused_at.map_or(age, |known| known.min(age)));
        }
    }

    /// A token was renewed before it was refused.
    pub(super) fn renewed(&mut self) {
        self.refused_at = self.refused_at.and_then(|age| age.checked_add(age / 16));
    }

    /// When to try again after a renewal that failed.
    pub(super) fn retry_at(now: Instant) -> Instant {
        now + RETRY_PAUSE
    }
}

/// The end of a signed token in seconds since 1970; none for another token.
fn end_of(token: &HeaderValue) -> Option<i64> {
    #[derive(Deserialize)]
    struct Payload {
        exp: f64,
    }
    let mut parts = token.to_str().ok()?.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice::<Payload>(&payload).ok().map(|payload| payload.exp as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(claims: &str) -> HeaderValue {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)).parse().unwrap()
    }

    /// Seconds after which a token would be renewed.
    fn after(lifetime: &TokenLifetime, token: &HeaderValue) -> Option<f64> {
        let now = Instant::now();
        lifetime.renew_at(token, 1000, now).map(|at| (at - now).as_secs_f64())
    }

    #[test]
    fn a_signed_token_is_renewed_after_two_thirds_of_its_time() {
        let lifetime = TokenLifetime::default();
        assert_eq!(after(&lifetime, &signed(r#"{"username":"root","revision":7,"exp":1301}"#)), Some(200.0));
        assert_eq!(after(&lifetime, &signed(r#"{"exp":1.301e3}"#)), Some(200.0));
        // One whose end is past by our clock is not renewed all the time.
        for odd in [r#"{"exp":1001}"#, r#"{"exp":5}"#, r#"{"exp":-1e300}"#, r#"{}"#, "nonsense"] {
            assert_eq!(after(&lifetime, &signed(odd)), None, "{odd}");
        }
        let far = signed(r#"{"exp":1e300}"#);
        assert!(after(&lifetime, &far).is_none_or(|seconds| seconds > 1e9), "{:?}", after(&lifetime, &far));
    }

    #[test]
    fn the_lifetime_of_a_simple_token_is_learned_from_its_refusal() {
        let simple = HeaderValue::from_static("abcdefgh.17");
        let mut lifetime = TokenLifetime::default();
        assert_eq!(after(&lifetime, &simple), None);
        lifetime.refused(Duration::from_millis(10));
        assert_eq!(after(&lifetime, &simple), None, "that was not its age");
        lifetime.refused(Duration::from_secs(40));
        lifetime.refused(Duration::from_secs(60));
        assert_eq!(after(&lifetime, &simple), Some(20.0));
        lifetime.renewed();
        assert_eq!(after(&lifetime, &simple), Some(21.25));
        // A clock that differs from the member's is corrected in the same way.
        assert_eq!(after(&lifetime, &signed(r#"{"exp":1301}"#)), Some(21.25));
    }
}
