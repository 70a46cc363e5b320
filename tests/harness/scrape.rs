use std::collections::{BTreeMap, BTreeSet};

use super::http_get;

/// A page of metrics, by family.
#[derive(Clone, Debug, Default)]
pub struct Scrape(pub BTreeMap<String, Family>);

/// One metric with all its series.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Names of labels, `le` left out.
    pub labels: BTreeSet<String>,
    /// Upper bounds of the buckets of a histogram.
    pub buckets: BTreeSet<String>,
    /// Values by the whole name.
    pub series: BTreeMap<String, f64>,
}

impl Scrape {
    /// Fetches a page.
    pub async fn of(address: &str, path: &str) -> Self {
        let answer = http_get(address, "GET", path).await.expect("metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        Self::parse(&answer.body)
    }

    fn parse(text: &str) -> Self {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                current = name.to_owned();
                families.entry(current.clone()).or_default().kind = kind.to_owned();
            } else if let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                let family = families.get_mut(&current).expect("a type before the first series");
                family.series.insert(series.to_owned(), value.parse().expect("a number"));
                let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
                // No label value of a test holds a quote or an equals sign.
                for (name, value) in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
                    match name {
                        "le" => family.buckets.insert(value.trim_end_matches('"').to_owned()),
                        _ => family.labels.insert(name.to_owned()),
                    };
                }
            }
        }
        Self(families)
    }

    /// The families of which any series is not what it was; a series that did not exist was 0.
    pub fn moved_since(&self, before: &Self) -> BTreeSet<String> {
        let moved = |name: &str, family: &Family| {
            let old = before.0.get(name);
            family.series.iter().any(|(series, value)| {
                let was = old.and_then(|old| old.series.get(series)).copied().unwrap_or(0.0);
                value.to_bits() != was.to_bits()
            })
        };
        self.0.iter().filter(|(name, family)| moved(name, family)).map(|(name, _)| name.clone()).collect()
    }

    /// The sum of all series of a family that have this text in their name.
    pub fn sum(&self, name: &str, part: &str) -> f64 {
        let family = self.0.get(name).into_iter().flat_map(|family| &family.series);
        family.filter(|(series, _)| series.contains(part)).map(|(_, value)| value).sum()
    }

    /// Asserts type and label names of a family.
    #[track_caller]
    pub fn check(&self, (name, kind, labels): (&str, &str, &str)) {
        let family = self.0.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        let found: Vec<&str> = family.labels.iter().map(String::as_str).collect();
        assert_eq!((family.kind.as_str(), found.join(",").as_str()), (kind, labels), "{name}");
    }
}
