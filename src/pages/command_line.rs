use std::ffi::OsString;

/// Flags whose value has a password, a token or a user name in it.
const SECRET: [&str; 8] = [
    "discovery",
    "discovery-password",
    "discovery-proxy",
    "discovery-token",
    "discovery-user",
    "password",
    "resolver-user",
    "user",
];
/// Shown in place of such a value.
const HIDDEN: &str = "…";

/// The arguments of the process, for pages: who may read those need not know a password.
pub(super) fn command_line() -> Vec<String> {
    without_secrets(std::env::args_os())
}

fn without_secrets(args: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let (mut shown, mut hides_next) = (Vec::new(), false);
    for arg in args {
        let arg = arg.to_string_lossy().into_owned();
        if std::mem::take(&mut hides_next) {
            shown.push(HIDDEN.to_owned());
            continue;
        }
        let (flag, value) = arg.split_once('=').map_or((arg.as_str(), None), |(flag, value)| (flag, Some(value)));
        let is_secret = flag.starts_with('-') && SECRET.contains(&flag.trim_start_matches('-'));
        hides_next = is_secret && value.is_none();
        let is_hidden = is_secret && value.is_some_and(|value| !value.is_empty());
        shown.push(if is_hidden { format!("{flag}={HIDDEN}") } else { arg.clone() });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_tokens_are_not_shown() {
        // Cause: /debug/vars of a proxy, which every client may ask for, had the password of the proxy's own user.
        for (line, expected) in [
            ("w grpc-proxy start --user=root:secret --debug", "w grpc-proxy start --user=… --debug"),
            ("w -password secret --user root", "w -password … --user …"),
            ("w --discovery=http://r/token --discovery-srv=d", "w --discovery=… --discovery-srv=d"),
            ("w --password-file=f --password= --name=user", "w --password-file=f --password= --name=user"),
            ("user=a --discovery-token", "user=a --discovery-token"),
        ] {
            assert_eq!(without_secrets(line.split(' ').map(OsString::from)).join(" "), expected, "{line}");
        }
    }
}
