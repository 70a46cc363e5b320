use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use ring::rand::{SecureRandom, SystemRandom};

use crate::types::LogIndex;

/// Parts of the table, each with a lock of its own that is held for one look-up.
const PARTS: usize = 16;
/// Tokens that are kept. Above it a login gets a token that no member accepts, and its client has to log in again later.
const TOKENS_MAX: usize = 1 << 20;
/// Pause between two sweeps for expired tokens; a sweep takes place when a token is added.
const SWEEP: Duration = Duration::from_secs(1);

const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const TOKEN_LETTERS: usize = 16;

/// The random part of a simple token; none without randomness of the system.
pub fn random_letters() -> Option<String> {
    let random = SystemRandom::new();
    let mut letters = String::with_capacity(TOKEN_LETTERS);
    while letters.len() < TOKEN_LETTERS {
        let mut bytes = [0; 2 * TOKEN_LETTERS];
        random.fill(&mut bytes).ok()?;
        // The four highest multiples of 52 that fit: every letter is as likely.
        let taken = bytes.iter().filter(|byte| **byte < 208).take(TOKEN_LETTERS - letters.len());
        letters.extend(taken.map(|byte| char::from(LETTERS[usize::from(byte % 52)])));
    }
    Some(letters)
}

/// A simple token: the letters in an entry, and the index of the entry.
pub fn simple_token(letters: &str, index: LogIndex) -> String {
    format!("{letters}.{}", index.0)
}

/// What the text of a token says about the entry that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenIndex(pub LogIndex);

impl TokenIndex {
    /// Reads `letters.index`; none for anything else.
    pub fn of(token: &str) -> Option<Self> {
        let (_, index) = token.split_once('.')?;
        index.parse().ok().map(|index| Self(LogIndex(index)))
    }
}

struct Token {
    user: Arc<str>,
    /// Milliseconds after `began`.
    until: AtomicU64,
}

/// The simple tokens that this member accepts.
pub struct SimpleTokens {
    ttl: Duration,
    began: Instant,
    parts: [RwLock<HashMap<Box<str>, Token>>; PARTS],
    next_sweep: Mutex<Instant>,
}

/// How many there are, and nothing of them.
impl fmt::Debug for SimpleTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimpleTokens").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl SimpleTokens {
    /// Tokens live for `ttl` after their last use.
    pub fn new(ttl: Duration, now: Instant) -> Self {
        Self { ttl, began: now, parts: Default::default(), next_sweep: Mutex::new(now) }
    }

    /// Adds a token.
    pub fn add(&self, token: String, user: Arc<str>, now: Instant) {
        self.sweep(now);
        if self.count() >= TOKENS_MAX {
            tracing::warn!("too many simple tokens, one is not kept");
            return;
        }
        let until = AtomicU64::new(self.until(now));
        self.part(&token).write().insert(token.into(), Token { user, until });
    }

    /// The user of a token that has not expired. Its time begins anew.
    pub fn user(&self, token: &str, now: Instant) -> Option<Arc<str>> {
        let part = self.part(token).read();
        let found = part.get(token)?;
        if found.until.load(Ordering::Relaxed) < self.millis(now) {
            return None;
        }
        found.until.store(self.until(now), Ordering::Relaxed);
        Some(found.user.clone())
    }

    /// Ends the tokens of a user.
    pub fn end_user(&self, user: &str) {
        for part in &self.parts {
            part.write().retain(|_, token| *token.user != *user);
        }
    }

    /// Ends all tokens.
    pub fn clear(&self) {
        for part in &self.parts {
            part.write().clear();
        }
    }

    fn count(&self) -> usize {
        self.parts.iter().map(|part| part.read().len()).sum()
    }

    /// Removes expired tokens, once in a while.
    fn sweep(&self, now: Instant) {
        {
            let mut next = self.next_sweep.lock();
            if now < *next {
                return;
            }
            *next = now + SWEEP;
        }
        let millis = self.millis(now);
        for part in &self.parts {
            part.write().retain(|_, token| token.until.load(Ordering::Relaxed) >= millis);
        }
    }

    fn part(&self, token: &str) -> &RwLock<HashMap<Box<str>, Token>> {
        &self.parts[usize::from(token.as_bytes().first().copied().unwrap_or_default()) % PARTS]
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    fn until(&self, now: Instant) -> u64 {
        self.millis(now).saturating_add(u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_on_by_use_and_ends_with_its_user() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let tokens = SimpleTokens::new(Duration::from_secs(10), start);
        tokens.add("a.1".to_owned(), "alice".into(), start);
        tokens.add("b.2".to_owned(), "bob".into(), start);
        assert_eq!(tokens.user("a.1", at(9)).as_deref(), Some("alice"));
        assert_eq!(tokens.user("a.1", at(18)).as_deref(), Some("alice"), "used nine seconds ago");
        assert_eq!(tokens.user("b.2", at(18)), None, "not used");
        assert_eq!(tokens.user("a.1", at(29)), None);
        assert_eq!(tokens.user("a.2", start), None);
        tokens.add("c.3".to_owned(), "alice".into(), at(40));
        assert_eq!(tokens.count(), 1, "expired ones are removed");
        tokens.end_user("alice");
        assert_eq!(tokens.user("c.3", at(40)), None);
    }

    #[test]
    fn letters_are_random_and_the_index_is_behind_them() {
        let (one, two) = (random_letters().expect("randomness"), random_letters().expect("randomness"));
        assert!(one != two && one.len() == 16 && one.bytes().all(|letter| LETTERS.contains(&letter)));
        assert_eq!(TokenIndex::of("abc.44"), Some(TokenIndex(LogIndex(44))));
        for text in ["", "abc", "abc.", "abc.x", "a.b.4", "abc.-1", "abc.99999999999999999999"] {
            assert_eq!(TokenIndex::of(text), None, "{text}");
        }
        let tokens = SimpleTokens::new(Duration::from_secs(10), Instant::now());
        tokens.add("SECRET.1".to_owned(), "u".into(), Instant::now());
        assert!(!format!("{tokens:?}").contains("SECRET"));
    }
}
