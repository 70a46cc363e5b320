use std::collections::BTreeSet;

/// Words of the window.
const WORDS: u32 = 8;
const WORD_BITS: u32 = u64::BITS;
/// Older streams that are told apart; with more, the others are not needed to know that some are open.
const OLDER_MAX: usize = 64 * 1024;

/// The streams of a client that are open on one connection.
///
/// Clients choose odd and ascending ids, and most streams end soon: a bit for each of the newest 512 costs a few
/// instructions a stream. Those that are open for longer, as watches are, are in a set.
#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    /// The word `n` of the bits of all streams is at `n % WORDS`, if it is one of the last [`WORDS`] up to `newest_word`.
    recent: [u64; WORDS as usize],
    newest_word: u32,
    older: BTreeSet<u32>,
}

/// The word and the bit of a stream.
fn place(stream: u32) -> (u32, u64) {
    let index = stream >> 1;
    (index / WORD_BITS, 1 << (index % WORD_BITS))
}

impl OpenStreams {
    /// A stream that is newer than all others.
    #[inline]
    pub(super) fn open(&mut self, stream: u32) {
        let (word, bit) = place(stream);
        if word > self.newest_word {
            self.advance(word);
        }
        self.recent[(word % WORDS) as usize] |= bit;
    }

    /// A stream ends; it may have ended before.
    #[inline]
    pub(super) fn close(&mut self, stream: u32) {
        let (word, bit) = place(stream);
        if word + WORDS > self.newest_word {
            self.recent[(word % WORDS) as usize] &= !bit;
        } else {
            self.older.remove(&stream);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.recent == [0; WORDS as usize] && self.older.is_empty()
    }

    /// Moves the window, and the streams that it leaves into the set.
    #[cold]
    fn advance(&mut self, word: u32) {
        let first_kept = (word + 1).saturating_sub(WORDS);
        let first = (self.newest_word + 1).saturating_sub(WORDS);
        for left in first..first_kept.min(self.newest_word + 1) {
            let mut bits = std::mem::take(&mut self.recent[(left % WORDS) as usize]);
            while bits != 0 && self.older.len() < OLDER_MAX {
                let index = left * WORD_BITS + bits.trailing_zeros();
                self.older.insert(index << 1 | 1);
                bits &= bits - 1;
            }
        }
        self.newest_word = word;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn streams_are_open_until_they_end_however_old() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut streams, mut model, mut next) = (OpenStreams::default(), HashSet::new(), 1_u32);
            let stay_open = random.f32();
            for _ in 0..3_000 {
                streams.open(next);
                model.insert(next);
                if random.f32() > stay_open {
                    streams.close(next);
                    model.remove(&next);
                }
                let any = random.u32(0..=next / 2) * 2 + 1;
                streams.close(any);
                model.remove(&any);
                assert_eq!(streams.is_empty(), model.is_empty());
                next += match random.u8(..) {
                    0 => random.u32(0..5_000) * 2,
                    _ => 2,
                };
            }
            let mut left: Vec<_> = model.into_iter().collect();
            random.shuffle(&mut left);
            for stream in left {
                assert!(!streams.is_empty());
                streams.close(stream);
            }
            assert!(streams.is_empty(), "seed {seed}");
        }
    }

    #[test]
    fn the_newest_id_there_is() {
        let mut streams = OpenStreams::default();
        streams.open(1);
        streams.open(0x7fff_ffff);
        streams.close(0x7fff_ffff);
        assert!(!streams.is_empty());
        streams.close(1);
        assert!(streams.is_empty());
    }

    #[test]
    fn what_is_kept_of_old_streams_is_bounded() {
        let mut streams = OpenStreams::default();
        (0..200_000).for_each(|index| streams.open(index * 2 + 1));
        assert_eq!(streams.older.len(), OLDER_MAX);
    }
}
