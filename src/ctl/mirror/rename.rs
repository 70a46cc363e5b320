use bytes::Bytes;

use super::super::failure::Failure;
use super::super::flags::Parsed;

/// What the keys of the source are called at the destination.
#[derive(Debug)]
pub(super) struct Rename {
    /// All mirrored keys start so.
    pub(super) prefix: Bytes,
    replacement: Bytes,
}

impl Rename {
    pub(super) fn read(parsed: &Parsed) -> Result<Self, Failure> {
        let text = |name: &str| Bytes::copy_from_slice(parsed.text(name).as_bytes());
        let (prefix, replacement) = (text("prefix"), text("dest-prefix"));
        match parsed.bool("no-dest-prefix") {
            true if !replacement.is_empty() => {
                let text = "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one";
                Err(Failure::args(text))
            }
            true => Ok(Self { prefix, replacement: Bytes::new() }),
            // etcdctl with --rev and without --dest-prefix cuts the prefix off; that loses keys, so this does not.
            false if replacement.is_empty() => Ok(Self { replacement: prefix.clone(), prefix }),
            false => Ok(Self { prefix, replacement }),
        }
    }

    pub(super) fn apply(&self, key: &[u8]) -> Bytes {
        match key.strip_prefix(self.prefix.as_ref()) {
            Some(rest) => [&self.replacement, rest].concat().into(),
            None => Bytes::copy_from_slice(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::flags::{self, Flag};
    use super::super::super::tree::ROOT;
    use super::*;

    #[test]
    fn keys_keep_lose_or_change_their_prefix() {
        let flags = ROOT.iter().find(|command| command.name == "make-mirror").unwrap().flags;
        let rename = |line: &str| {
            let words: Vec<_> = line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect();
            Rename::read(&flags::parse(&flags.iter().collect::<Vec<&Flag>>(), &words).unwrap())
        };
        for (line, key, name) in [
            ("d", "a/x", "a/x"),
            ("d --prefix a/", "a/x", "a/x"),
            ("d --prefix a/ --rev 7", "a/x", "a/x"),
            ("d --prefix a/ --dest-prefix b/", "a/a/x", "b/a/x"),
            ("d --prefix a/ --no-dest-prefix", "a/x", "x"),
            ("d --dest-prefix b/", "x", "b/x"),
        ] {
            assert_eq!(rename(line).unwrap().apply(key.as_bytes()), name, "{line}");
        }
        assert_eq!(rename("d --dest-prefix b --no-dest-prefix").unwrap_err().code, 128);
    }
}
