use std::rc::Rc;

use super::load::{Sample, measure_for};
use super::programs::Programs;

/// One of the set-ups that a row compares; what runs for it ends with it.
pub(in crate::bench) struct Side {
    pub(in crate::bench) name: &'static str,
    /// Measures for about so many seconds.
    pub(in crate::bench) measure: Box<dyn FnMut(f64) -> Result<Sample, String>>,
}

impl Side {
    pub(in crate::bench) fn new(
        name: &'static str,
        measure: impl FnMut(f64) -> Result<Sample, String> + 'static,
    ) -> Self {
        Self { name, measure: Box::new(measure) }
    }

    /// A load that runs for some seconds in each round; `words` makes its words of the line.
    pub(in crate::bench) fn of_load(
        name: &'static str,
        programs: &Programs,
        line: &str,
        words: impl Fn(&str) -> Vec<String> + 'static,
    ) -> Self {
        let (programs, line) = (programs.clone(), line.to_owned());
        Self::new(name, move |seconds| measure_for(&programs, words(&line), seconds))
    }

    /// The same, and keeps what other sides use, too.
    pub(in crate::bench) fn behind<T: 'static>(self, shared: &Rc<T>) -> Self {
        let (shared, mut measure) = (shared.clone(), self.measure);
        Self::new(self.name, move |seconds| {
            let _shared = &shared;
            measure(seconds)
        })
    }
}

/// The sides of a row, and why some are not there.
#[derive(Default)]
pub(in crate::bench) struct Sides {
    pub(in crate::bench) sides: Vec<Side>,
    pub(in crate::bench) notes: Vec<String>,
}

impl From<Vec<Side>> for Sides {
    fn from(sides: Vec<Side>) -> Self {
        Self { sides, notes: Vec::new() }
    }
}
