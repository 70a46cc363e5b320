use std::net::IpAddr;

use super::super::url::{Place, split};

/// Finds the address of a host name; the error is a text for the log.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Result<IpAddr, String>;

/// Whether two lists of URLs lead to the same places, in whatever order; the error says why not.
///
/// As in etcd, they are first compared as they are, apart from spellings of one IP address, and names are looked up
/// only when that differs. `localhost` stays a name: it is not the same as 127.0.0.1.
///
/// # Errors
/// The first difference, or a name that does not resolve.
pub fn same_urls(a: &[String], b: &[String], resolve: Resolve<'_>) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("len({a:?}) != len({b:?})"));
    }
    let as_they_are = |host: &str| Ok(host.parse::<IpAddr>().ok());
    let looked_up = |host: &str| match host.parse::<IpAddr>() {
        Ok(address) => Ok(Some(address)),
        Err(_) if host == "localhost" => Ok(None),
        Err(_) => resolve(host).map(Some),
    };
    if normalized(a, as_they_are)? == normalized(b, as_they_are)? {
        return Ok(());
    }
    let (a, b) = (normalized(a, looked_up)?, normalized(b, looked_up)?);
    match a.iter().zip(&b).find(|(a, b)| a != b) {
        None => Ok(()),
        Some((a, b)) => Err(format!("resolved urls: {a:?} != {b:?}")),
    }
}

/// The URLs with addresses in place of names where there is one, sorted.
fn normalized(
    urls: &[String],
    address: impl Fn(&str) -> Result<Option<IpAddr>, String>,
) -> Result<Vec<String>, String> {
    let one = |url: &String| {
        let (scheme, place) = split(url).map_err(|error| error.to_string())?;
        let Place::Tcp(place) = place else { return Ok(url.clone()) };
        Ok(match address(place.host())? {
            Some(IpAddr::V6(v6)) => format!("{scheme}://[{v6}]:{}", place.port()),
            Some(v4) => format!("{scheme}://{v4}:{}", place.port()),
            None => format!("{scheme}://{place}"),
        })
    };
    let mut all: Vec<String> = urls.iter().map(one).collect::<Result<_, String>>()?;
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(host: &str) -> Result<IpAddr, String> {
        match host {
            "a.example" => Ok([10, 0, 0, 1].into()),
            "b.example" => Ok([10, 0, 0, 2].into()),
            _ => Err(format!("lookup {host}: no such host")),
        }
    }

    fn check(a: &str, b: &str, expected: &str) {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let seen = same_urls(&list(a), &list(b), &resolve).err().unwrap_or_else(|| "same".to_owned());
        assert_eq!(seen, expected, "{a} and {b}");
    }

    #[test]
    fn places_are_compared_not_spellings() {
        check("http://x:1 http://y:2", "http://y:2 http://x:1", "same");
        check("http://[::1]:1", "http://[0:0::1]:1", "same");
        check("http://a.example:1 http://10.0.0.2:1", "http://b.example:1 http://10.0.0.1:1", "same");
        check(
            "http://a.example:1",
            "http://10.0.0.2:1",
            r#"resolved urls: "http://10.0.0.1:1" != "http://10.0.0.2:1""#,
        );
        check("http://10.0.0.1:1", "http://10.0.0.1:2", r#"resolved urls: "http://10.0.0.1:1" != "http://10.0.0.1:2""#);
        check(
            "http://10.0.0.1:1",
            "https://10.0.0.1:1",
            r#"resolved urls: "http://10.0.0.1:1" != "https://10.0.0.1:1""#,
        );
        check(
            "http://localhost:1",
            "http://127.0.0.1:1",
            r#"resolved urls: "http://localhost:1" != "http://127.0.0.1:1""#,
        );
        check("http://c.example:1", "http://10.0.0.1:1", "lookup c.example: no such host");
        check("http://a:1", "http://a:1 http://b:1", r#"len(["http://a:1"]) != len(["http://a:1", "http://b:1"])"#);
    }
}
