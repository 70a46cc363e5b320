use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue};

use super::page::{Page, nosniff, not_found, page};

/// What the page may load: what is served beside it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The status page: static files that ask `/proxy/status` each second.
pub struct StatusPage;

impl StatusPage {
    /// Whether the path is one of its files.
    pub fn has(path: &str) -> bool {
        file(path).is_some()
    }

    /// One of its files.
    pub fn answer(path: &str) -> Page {
        let Some((content_type, body)) = file(path) else { return not_found() };
        let mut page = nosniff(page(StatusCode::OK, content_type, body));
        page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        page
    }
}

fn file(path: &str) -> Option<(&'static str, &'static str)> {
    Some(match path {
        "/ui" => ("text/html; charset=utf-8", include_str!("ui/index.html")),
        "/ui/style.css" => ("text/css; charset=utf-8", include_str!("ui/style.css")),
        "/ui/script.js" => ("text/javascript; charset=utf-8", include_str!("ui/script.js")),
        _ => return None,
    })
}
