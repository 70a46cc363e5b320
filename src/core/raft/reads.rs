/// Readers waiting for an index to read at, batched: one request is under way at a time, and those who come
/// meanwhile share the next.
///
/// Invariant: a reader is resolved only by a request that was sent after it came. A request that stays without an
/// answer is repeated under a new number, never under the old one: the library can confirm a stale read for a number
/// used twice.
#[derive(Debug)]
pub struct ReadQueue<R> {
    waiting: Vec<R>,
    asked: Option<Asked<R>>,
}

#[derive(Debug)]
struct Asked<R> {
    /// Every number this batch was sent under; any of them confirms it.
    numbers: Vec<u64>,
    readers: Vec<R>,
    /// Tick of the last sending.
    at: u64,
    /// Who was asked: a new leader knows nothing of what its predecessor was asked.
    era: (u64, u64),
}

impl<R> Default for ReadQueue<R> {
    fn default() -> Self {
        Self { waiting: Vec::new(), asked: None }
    }
}

/// Ticks after which an unanswered request is repeated.
const REPEAT_TICKS: u64 = 5;
/// Numbers of one batch that still confirm it.
const NUMBERS_MAX: usize = 8;

impl<R> ReadQueue<R> {
    /// Adds a reader.
    pub fn push(&mut self, reader: R) {
        self.waiting.push(reader);
    }

    /// Whether a request is to be sent now; `era` is term and leader. The number it is sent under goes to
    /// [`sent`](Self::sent).
    pub fn wants_request(&self, tick: u64, era: (u64, u64)) -> bool {
        match &self.asked {
            None => !self.waiting.is_empty(),
            Some(asked) => asked.era != era || tick >= asked.at + REPEAT_TICKS,
        }
    }

    /// A request went out under `number`: the first for those who wait, or the same again. Returns how many readers lost
    /// their request with a leader.
    pub fn sent(&mut self, number: u64, tick: u64, era: (u64, u64)) -> usize {
        match &mut self.asked {
            Some(asked) => {
                let lost = if asked.era == era { 0 } else { asked.readers.len() };
                asked.numbers.push(number);
                if asked.numbers.len() > NUMBERS_MAX {
                    asked.numbers.remove(0);
                }
                (asked.at, asked.era) = (tick, era);
                lost
            }
            None => {
                let readers = std::mem::take(&mut self.waiting);
                self.asked = Some(Asked { numbers: vec![number], readers, at: tick, era });
                0
            }
        }
    }

    /// The readers a confirmation is for; none for a number that no reader waits for.
    pub fn confirmed(&mut self, number: u64) -> Vec<R> {
        match self.asked.take_if(|asked| asked.numbers.contains(&number)) {
            Some(asked) => asked.readers,
            None => Vec::new(),
        }
    }

    /// Forgets readers that no longer wait.
    pub fn retain(&mut self, keep: impl Fn(&R) -> bool) {
        self.waiting.retain(&keep);
        if let Some(asked) = &mut self.asked {
            asked.readers.retain(&keep);
            if asked.readers.is_empty() {
                self.asked = None;
            }
        }
    }
}
