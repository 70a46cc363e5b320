/// Where etcd's own servers have the tokens.
const V2_KEYS: &str = "/v2/keys/_etcd/registry/";
const TOKEN_BYTES_MAX: usize = 128;
const ID_BYTES_MAX: usize = 64;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Makes tokens.
    New,
    /// A token with its members.
    Token(String),
    /// The size of the cluster that a token is for.
    Size(String),
    /// One member, by its id.
    Member(String, String),
}

impl Place {
    /// Reads a path: below [`V2_KEYS`], or without it. None where nothing is.
    pub(super) fn of(path: &str) -> Option<Self> {
        if path == "/new" {
            return Some(Self::New);
        }
        let rest = path.strip_prefix(V2_KEYS).or_else(|| path.strip_prefix('/'))?;
        let (token, rest) = match rest.split_once('/') {
            Some((token, rest)) => (token, rest.trim_end_matches('/')),
            None => (rest, ""),
        };
        let token = part(token, TOKEN_BYTES_MAX)?;
        match rest {
            "" => Some(Self::Token(token)),
            "_config/size" => Some(Self::Size(token)),
            id => Some(Self::Member(token, part(id, ID_BYTES_MAX)?)),
        }
    }
}

/// A name in a path: letters, digits and a few signs, none of etcd's hidden names, which begin with an underscore.
fn part(text: &str, bytes_max: usize) -> Option<String> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '~');
    let is_name = (1..=bytes_max).contains(&text.len()) && text.chars().all(is_plain);
    (is_name && !text.starts_with(['_', '.'])).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_token_its_size_or_a_member() {
        let token = || "abc-1".to_owned();
        for base in ["/", V2_KEYS] {
            let of = |rest: &str| Place::of(&format!("{base}{rest}"));
            assert_eq!(of("abc-1"), Some(Place::Token(token())));
            assert_eq!(of("abc-1/"), Some(Place::Token(token())));
            assert_eq!(of("abc-1/_config/size"), Some(Place::Size(token())));
            assert_eq!(of("abc-1/1f"), Some(Place::Member(token(), "1f".to_owned())));
            let long = "a".repeat(129);
            for nothing in ["", "a/b/c", "a//b", "_a", "a/_b", "a/_config", "..", "a/..", "a%2Fb", "a b", "%ff", &long]
            {
                assert_eq!(of(nothing), None, "{nothing:?}");
            }
        }
        assert_eq!(Place::of("/new"), Some(Place::New));
        assert_eq!(Place::of("new"), None);
    }
}
