use std::time::Duration;

use super::super::session::Session;
use crate::client::http_page;
use crate::net::ClientTls;

const METRIC: &str = "process_resident_memory_bytes";
/// How long the page may take; a member under load answers late.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the metrics page of the first endpoint says about its memory, in bytes.
pub(super) async fn resident(session: &Session) -> Result<f64, String> {
    let endpoint = session.options.endpoints.first().ok_or("no endpoint")?;
    let endpoint = session.options.endpoint(endpoint).map_err(|failure| format!("fetch error: {}", failure.text))?;
    let tls = session.options.tls.as_ref().map(ClientTls::new).transpose();
    let tls = tls.map_err(|error| format!("fetch error: {error}"))?;
    let page = match tokio::time::timeout(PATIENCE, http_page(&endpoint, tls.as_ref(), "/metrics")).await {
        Ok(page) => page.map_err(|error| format!("fetch error: {error}"))?,
        Err(_) => return Err("fetch error: no answer in time".to_owned()),
    };
    value(&String::from_utf8_lossy(page.body()))
}

fn value(page: &str) -> Result<f64, String> {
    let line = page.lines().find_map(|line| line.strip_prefix(METRIC));
    let text =
        line.map(str::trim).filter(|text| !text.is_empty()).ok_or_else(|| format!("could not find: {METRIC}"))?;
    match text.parse() {
        Ok(0.0) => Err(format!("{METRIC} is 0")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("parse error: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_found_among_the_metrics() {
        let page =
            "# HELP process_resident_memory_bytes x\nprocess_open_fds 3\nprocess_resident_memory_bytes 2.5e+07\n";
        assert_eq!(value(page), Ok(2.5e7));
        assert_eq!(value("a 1\n"), Err("could not find: process_resident_memory_bytes".into()));
        assert!(value("process_resident_memory_bytes x\n").is_err());
    }
}
