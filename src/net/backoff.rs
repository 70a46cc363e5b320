use std::time::Duration;

/// Pauses between attempts: each is twice as long as the one before, up to a bound, and shortened at random by up to a
/// half, so that processes that failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with `first`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// Begins again with the first pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Changes the longest pause from the next one on.
    pub fn set_max(&mut self, max: Duration) {
        self.max = max;
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.min(self.max);
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_start_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(20), ms(1000));
        for bound in [20, 40, 80, 160, 320, 640, 1000, 1000] {
            let pause = backoff.pause();
            assert!(ms(bound / 2) <= pause && pause <= ms(bound), "{pause:?} for {bound}");
        }
        backoff.set_max(ms(50));
        assert!(backoff.pause() <= ms(50));
        backoff.reset();
        assert!(backoff.pause() <= ms(20));
    }
}
