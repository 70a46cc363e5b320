use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue};

use super::page::{Page, nosniff, not_found, page};

/// What the page may load: what is served beside it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A status page: static files that ask for the state of the program each second.
#[derive(Clone, Copy, Debug)]
pub struct StatusPage {
    index: &'static str,
    /// What only this page has; charts and tables are shared.
    script: &'static str,
}

impl StatusPage {
    /// That of a proxy, which asks `/proxy/status`.
    pub const PROXY: Self = Self { index: include_str!("ui/proxy.html"), script: include_str!("ui/proxy.js") };
    /// That of a gateway, which asks `/gateway/status`.
    pub const GATEWAY: Self = Self { index: include_str!("ui/gateway.html"), script: include_str!("ui/gateway.js") };

    /// Whether the path is one of its files.
    pub fn has(self, path: &str) -> bool {
        self.file(path).is_some()
    }

    /// One of its files.
    pub fn answer(self, path: &str) -> Page {
        let Some((content_type, body)) = self.file(path) else { return not_found() };
        let mut page = nosniff(page(StatusCode::OK, content_type, body));
        page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        page
    }

    fn file(self, path: &str) -> Option<(&'static str, &'static str)> {
        Some(match path {
            "/ui" => ("text/html; charset=utf-8", self.index),
            "/ui/style.css" => ("text/css; charset=utf-8", include_str!("ui/style.css")),
            "/ui/page.js" => ("text/javascript; charset=utf-8", include_str!("ui/page.js")),
            "/ui/script.js" => ("text/javascript; charset=utf-8", self.script),
            _ => return None,
        })
    }
}
