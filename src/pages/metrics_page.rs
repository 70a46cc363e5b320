use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::page::{Page, page};
use crate::telemetry::TEXT_CONTENT_TYPE;

/// The page at `/metrics`, compressed when the client asks for it in `headers`.
pub fn metrics_page(headers: &HeaderMap, metrics: impl Into<Bytes>) -> Page {
    let metrics = metrics.into();
    if !prefers_gzip(headers) {
        return page(StatusCode::OK, TEXT_CONTENT_TYPE, metrics);
    }
    // A scrape reads this once, from near: time counts more than the last bytes.
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    // A vector takes everything.
    let Ok(compressed) = compressed.write_all(&metrics).and_then(|()| compressed.finish()) else {
        return page(StatusCode::OK, TEXT_CONTENT_TYPE, metrics);
    };
    let mut page = page(StatusCode::OK, TEXT_CONTENT_TYPE, compressed);
    page.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    page
}

/// Whether gzip is wanted more than none, by the rules of etcd's metrics page: the highest quality of each counts.
fn prefers_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity) = (0.0, -1.0);
    let listed = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for entry in listed.flat_map(|value| value.split(',')) {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0_f64);
        if name == "gzip" || name == "*" {
            gzip = quality.max(gzip);
        }
        if name == "identity" || name == "*" {
            identity = quality.max(identity);
        }
    }
    gzip > identity && gzip > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    use http_body_util::BodyExt;

    #[test]
    fn the_client_decides() {
        for (accept, gzip) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("identity;q=0.5, gzip ; q=1.0", true),
            ("gzip;q=0", false),
            ("gzip;q=0.4,identity;q=0.5", false),
            ("*", false),
            ("br", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept))]);
            assert_eq!(prefers_gzip(&headers), gzip, "{accept}");
        }
        assert!(!prefers_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn what_is_compressed_is_the_page() {
        let text = "a 1\n".repeat(1000);
        let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))]);
        let page = metrics_page(&headers, text.clone());
        assert_eq!(page.headers()[CONTENT_ENCODING], "gzip");
        let body = page.into_body().collect().await.expect("a page").to_bytes();
        let mut read = String::new();
        flate2::read::GzDecoder::new(body.as_ref()).read_to_string(&mut read).expect("gzip");
        assert!(read == text && body.len() < 100);
        let plain = metrics_page(&HeaderMap::new(), text.clone());
        assert!(!plain.headers().contains_key(CONTENT_ENCODING));
        assert_eq!(plain.into_body().collect().await.expect("a page").to_bytes(), text);
    }
}
