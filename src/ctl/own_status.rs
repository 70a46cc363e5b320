use http::StatusCode;
use serde::de::DeserializeOwned;

use super::failure::{Exit, Failure};
use super::print::Format;
use super::session::Session;
use crate::client::http_page;
use crate::net::ClientTls;

/// A page of JSON by which a gateway or a proxy of this program tells its state.
pub(super) struct StatusPage {
    pub(super) path: &'static str,
    /// Why a server may not have it.
    pub(super) missing: &'static str,
}

/// What each of the endpoints told.
pub(super) enum Answers<R> {
    /// As it was told, in the form that `-w json` prints.
    Json(String),
    /// By endpoint, as given.
    Reports(Vec<(String, R)>),
}

impl StatusPage {
    /// Asks every endpoint; one that does not answer is an error.
    pub(super) async fn ask<R: DeserializeOwned>(&self, session: &Session) -> Result<Answers<R>, Failure> {
        session.options.usable()?;
        let format = session.printer.format;
        if !matches!(format, Format::Simple | Format::Table | Format::Json) {
            return Err(session.printer.unsupported());
        }
        let mut told = Vec::new();
        for endpoint in &session.options.endpoints {
            let body = self.fetch(session, endpoint).await.map_err(|reason| Failure::new(Exit::Error, reason))?;
            told.push((endpoint.clone(), body));
        }
        if format == Format::Json {
            let one = |(endpoint, body): (String, serde_json::Value)| serde_json::json!({"Endpoint": endpoint, "Status": body});
            return Ok(Answers::Json(format!("{}\n", serde_json::Value::from_iter(told.into_iter().map(one)))));
        }
        let reports = told.into_iter().map(|(endpoint, body)| {
            let read = serde_json::from_value(body);
            let report =
                read.map_err(|error| Failure::new(Exit::Error, format!("{endpoint}{}: {error}", self.path)))?;
            Ok((endpoint, report))
        });
        reports.collect::<Result<_, _>>().map(Answers::Reports)
    }

    async fn fetch(&self, session: &Session, text: &str) -> Result<serde_json::Value, String> {
        let path = self.path;
        let endpoint = session.options.endpoint(text).map_err(|failure| failure.text)?;
        let tls = session.options.tls.as_ref().map(ClientTls::new).transpose().map_err(|error| error.to_string())?;
        let page = http_page(&endpoint, tls.as_ref(), path);
        let page = match tokio::time::timeout(session.options.command_timeout, page).await {
            Ok(page) => page.map_err(|error| format!("{text}{path}: {error}"))?,
            Err(_) => return Err(format!("{text}{path}: no answer in time")),
        };
        if page.status() == StatusCode::NOT_FOUND {
            return Err(format!("{text} has no {path}: {}", self.missing));
        }
        if !page.status().is_success() {
            return Err(format!("{text}{path}: HTTP status {}", page.status()));
        }
        serde_json::from_slice(page.body()).map_err(|error| format!("{text}{path}: {error}"))
    }
}
