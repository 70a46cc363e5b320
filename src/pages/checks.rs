use http::StatusCode;

use super::page::{Page, text};

/// The parameters of `/health`, `/livez` and `/readyz`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CheckQuery {
    /// Skip what needs a leader.
    pub serializable: bool,
    /// One line per check, also when all pass.
    pub verbose: bool,
    /// Alarms or checks to leave out.
    pub exclude: Vec<String>,
}

impl CheckQuery {
    /// Reads the query of a URI. Unknown parameters are ignored.
    pub fn parse(query: Option<&str>) -> Self {
        let mut parsed = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match name.as_ref() {
                "serializable" => parsed.serializable = value == "true",
                "verbose" => parsed.verbose = true,
                "exclude" if !value.is_empty() => parsed.exclude.push(value.into_owned()),
                _ => {}
            }
        }
        parsed
    }

    /// Whether an alarm or a check is left out.
    pub fn excludes(&self, name: &str) -> bool {
        self.exclude.iter().any(|excluded| excluded == name)
    }
}

/// What the checks of one request found.
#[derive(Debug, Default)]
pub struct CheckReport {
    failed: bool,
    lines: String,
}

impl CheckReport {
    /// Adds the outcome of a check; tells whether it passed.
    pub fn add(&mut self, name: &str, outcome: Result<(), String>) -> bool {
        match &outcome {
            Ok(()) => self.lines += &format!("[+]{name} ok\n"),
            Err(reason) => self.lines += &format!("[-]{name} failed: {reason}\n"),
        }
        self.failed |= outcome.is_err();
        outcome.is_ok()
    }

    /// The answer.
    pub fn into_page(self, query: &CheckQuery) -> Page {
        match (self.failed, query.verbose) {
            (true, _) => text(StatusCode::SERVICE_UNAVAILABLE, self.lines + "\n"),
            (false, true) => text(StatusCode::OK, self.lines + "ok\n"),
            (false, false) => text(StatusCode::OK, "ok\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_leniently() {
        let query = CheckQuery::parse(Some("serializable=true&exclude=NOSPACE&exclude=&verbose&x=y"));
        let expected = CheckQuery { serializable: true, verbose: true, exclude: vec!["NOSPACE".into()] };
        assert_eq!(query, expected);
        assert!(!CheckQuery::parse(Some("serializable=1")).serializable);
    }
}
