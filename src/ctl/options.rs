use std::time::Duration;

use super::failure::{Exit, Failure};
use super::flags::{Flag, Kind, Parsed};
use super::print::{Format, Printer};
use super::{golang, terminal};
use crate::config::SrvConfig;
use crate::discovery::find_endpoints;
use crate::net::{Alpn, ClientTlsConfig, Endpoint};

/// Options of every command. Each has a variable `ETCDCTL_` + name in upper case.
pub(super) const FLAGS: &[Flag] = &[
    Flag::new("endpoints", Kind::List, "127.0.0.1:2379", "Members to ask, separated by commas"),
    Flag::new("write-out", Kind::Text, "simple", "Output format: simple, fields, json, table or protobuf").short('w'),
    Flag::new("hex", Kind::Bool, "", "Show bytes and ids in hex"),
    Flag::new("dial-timeout", Kind::Duration, "2s", "How long one connection attempt may take"),
    Flag::new("command-timeout", Kind::Duration, "5s", "How long a short command may take"),
    Flag::new("keepalive-time", Kind::Duration, "2s", "Silence after which a connection is probed"),
    Flag::new("keepalive-timeout", Kind::Duration, "6s", "How long a probe may stay without an answer"),
    Flag::new("max-request-bytes", Kind::Int, "", "Largest request to send; 0 is 2 MiB"),
    Flag::new("max-recv-bytes", Kind::Int, "", "Largest answer to accept; 0 is 2 GiB"),
    Flag::new("cacert", Kind::Text, "", "Authorities whose certificates members have"),
    Flag::new("cert", Kind::Text, "", "Certificate to show to members"),
    Flag::new("key", Kind::Text, "", "Key of --cert"),
    Flag::new("insecure-skip-tls-verify", Kind::Bool, "", "Take any certificate of members: for tests only"),
    Flag::new(
        "insecure-transport",
        Kind::Bool,
        "true",
        "Speak plain to endpoints without a scheme, unless certificates are given",
    ),
    Flag::new("user", Kind::Text, "", "User name, or name:password"),
    Flag::new("password", Kind::Text, "", "Password of --user"),
    Flag::new("auth-jwt-token", Kind::Text, "", "Token to use instead of a user"),
    Flag::new("discovery-srv", Kind::Text, "", "Domain whose SRV records name the members to ask").short('d'),
    Flag::new("discovery-srv-name", Kind::Text, "", "Suffix of the service in the names of those records"),
    Flag::new(
        "insecure-discovery",
        Kind::Bool,
        "true",
        "Take members from SRV records without TLS, or with any name in their certificate",
    ),
    Flag::new("discovery-dns", Kind::Text, "", "DNS server to ask, as ADDRESS or ADDRESS:PORT"),
    Flag::new("debug", Kind::Bool, "", "Show the options in effect on standard error"),
];

/// Largest request unless told otherwise, in bytes; etcd's client has the same.
const SEND_BYTES_DEFAULT: usize = 2 << 20;

/// What every command needs to know, checked.
#[derive(Clone)]
pub(super) struct Options {
    /// As written, without surrounding spaces; output names endpoints the way the operator did.
    pub(super) endpoints: Vec<String>,
    /// Where the endpoints are found in place of these.
    pub(super) srv: Option<SrvConfig>,
    /// What is known of those that were found.
    pub(super) found: Vec<Endpoint>,
    pub(super) printer: Printer,
    pub(super) dial_timeout: Duration,
    pub(super) command_timeout: Duration,
    /// Whether `--command-timeout` stood on the command line; long commands only then have a limit.
    pub(super) command_timeout_given: bool,
    pub(super) keepalive_time: Duration,
    pub(super) keepalive_timeout: Duration,
    pub(super) send_bytes_max: usize,
    pub(super) receive_bytes_max: usize,
    pub(super) tls: Option<ClientTlsConfig>,
    pub(super) user: Option<(String, String)>,
    pub(super) token: Option<String>,
    /// Why these options cannot be used. Wrong arguments come first, so it is said when a command needs the cluster.
    pub(super) broken: Option<Failure>,
}

/// The variable that stands for a flag.
pub(super) fn variable(flag: &str) -> String {
    format!("ETCDCTL_{}", flag.to_uppercase().replace('-', "_"))
}

impl Options {
    /// Fills in variables for flags that were not given, and checks. No variable in `environment` is empty.
    ///
    /// What is wrong ends up in `broken`: a variable for a flag that was given as well, a value out of reach, what is
    /// not supported yet. A variable that cannot be read counts as not set, as in etcdctl, and is named.
    pub(super) fn read(parsed: &mut Parsed, environment: &[(String, String)]) -> Self {
        let broken = fill_in(parsed, environment).err();
        match Self::check(parsed) {
            Ok(options) => Self { broken, ..options },
            Err(failure) => Self { broken: broken.or(Some(failure)), ..Self::unusable() },
        }
    }

    fn unusable() -> Self {
        Self {
            endpoints: Vec::new(),
            srv: None,
            found: Vec::new(),
            printer: Printer::new(Format::Simple, false),
            dial_timeout: Duration::ZERO,
            command_timeout: Duration::ZERO,
            command_timeout_given: false,
            keepalive_time: Duration::ZERO,
            keepalive_timeout: Duration::ZERO,
            send_bytes_max: SEND_BYTES_DEFAULT,
            receive_bytes_max: i32::MAX as usize,
            tls: None,
            user: None,
            token: None,
            broken: None,
        }
    }

    fn check(parsed: &Parsed) -> Result<Self, Failure> {
        let error = |text: String| Failure::new(Exit::Error, text);
        let [domain, service_name, dns_server] =
            ["discovery-srv", "discovery-srv-name", "discovery-dns"].map(|name| parsed.text(name));
        let srv = SrvConfig::from_flags(domain, service_name, parsed.bool("insecure-discovery"), dns_server)
            .map_err(|(flag, reason)| error(format!("--{flag}: {reason}")))?;
        let bytes = |name: &str, default: usize| match parsed.int(name) {
            0 => Ok(default),
            given => usize::try_from(given).map_err(|_| Failure::args(format!("--{name} must not be negative"))),
        };
        let token = Some(parsed.text("auth-jwt-token").to_owned()).filter(|token| !token.is_empty());
        let user = if token.is_some() { None } else { user(parsed, ["user", "password"], "Password: ")? };
        Ok(Self {
            endpoints: parsed.list("endpoints").iter().map(|endpoint| endpoint.trim().to_owned()).collect(),
            srv,
            found: Vec::new(),
            printer: Printer::new(
                Format::read(parsed.text("write-out"))
                    .ok_or_else(|| Failure::new(Exit::BadFeature, "unsupported output format"))?,
                parsed.bool("hex"),
            ),
            dial_timeout: parsed.duration("dial-timeout"),
            command_timeout: parsed.duration("command-timeout"),
            command_timeout_given: parsed.is_set("command-timeout"),
            keepalive_time: parsed.duration("keepalive-time"),
            keepalive_timeout: parsed.duration("keepalive-timeout"),
            send_bytes_max: bytes("max-request-bytes", SEND_BYTES_DEFAULT)?,
            receive_bytes_max: bytes("max-recv-bytes", i32::MAX as usize)?,
            tls: tls(parsed, ["cacert", "cert", "key", "insecure-transport"], parsed.bool("insecure-skip-tls-verify"))?,
            user,
            token,
            broken: None,
        })
    }

    /// Puts the endpoints that SRV records name in place of those of the flag, if that is asked for.
    pub(super) async fn discover(mut self) -> Self {
        let Some(srv) = &self.srv else { return self };
        match tokio::time::timeout(self.command_timeout, find_endpoints(srv)).await {
            Ok(Ok(found)) => {
                let scheme = |endpoint: &Endpoint| if endpoint.uses_tls(false) { "https" } else { "http" };
                self.endpoints = found.iter().map(|endpoint| format!("{}://{endpoint}", scheme(endpoint))).collect();
                self.found = found;
            }
            Ok(Err(why)) => self.refuse(format!("--discovery-srv={}: {why}", srv.domain)),
            Err(_) => self.refuse(format!("--discovery-srv={}: no answer within --command-timeout", srv.domain)),
        }
        self
    }

    fn refuse(&mut self, text: String) {
        self.broken.get_or_insert(Failure::new(Exit::Error, text));
    }

    /// The endpoint that a text names.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub(super) fn endpoint(&self, text: &str) -> Result<Endpoint, Failure> {
        let endpoint =
            Endpoint::of_client(text).map_err(|error| Failure::new(Exit::Error, format!("--endpoints: {error}")))?;
        let found = self.found.iter().find(|found| found.is_same_place(&endpoint));
        Ok(found.cloned().unwrap_or(endpoint))
    }

    /// # Errors
    /// Why these options cannot be used.
    pub(super) fn usable(&self) -> Result<(), Failure> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// The same towards the destination of a mirror, whose flags begin with `dest-`.
    pub(super) fn for_destination(&self, parsed: &Parsed) -> Result<Self, Failure> {
        let names = ["dest-cacert", "dest-cert", "dest-key", "dest-insecure-transport"];
        Ok(Self { tls: tls(parsed, names, false)?, ..self.clone() })
    }
}

/// As in etcdctl: TLS is spoken to endpoints without a scheme when anything of it is given. `names` are the flags of
/// authorities, certificate, key and plain transport.
fn tls(parsed: &Parsed, names: [&str; 4], skip: bool) -> Result<Option<ClientTlsConfig>, Failure> {
    let [cacert, cert, key, insecure] = names;
    for name in [cert, key, cacert] {
        if parsed.is_set(name) && parsed.text(name).is_empty() {
            return Err(Failure::args(format!("empty string is passed to --{name} option")));
        }
    }
    let given = ClientTlsConfig::from_flags(parsed.text(cacert), parsed.text(cert), parsed.text(key), skip);
    let given = given.map_err(|reason| Failure::new(Exit::Error, reason))?;
    let usual = || (!parsed.bool(insecure)).then(|| ClientTlsConfig::new(Alpn::H2));
    Ok(given.or_else(usual))
}

/// Gives flags that did not stand on the command line the values of their variables.
fn fill_in(parsed: &mut Parsed, environment: &[(String, String)]) -> Result<(), Failure> {
    for (name, value) in environment {
        let Some(flag) = FLAGS.iter().find(|flag| variable(flag.name) == *name) else { continue };
        if parsed.is_set(flag.name) {
            let text = format!(
                "conflicting environment variable {name:?} is shadowed by corresponding command-line flag --{} \
                 (either unset environment variable or disable flag)",
                flag.name
            );
            return Err(Failure::new(Exit::Error, text));
        }
        if let Err(why) = parsed.put_variable(flag, name, value) {
            eprintln!("warning: {why}");
        }
    }
    Ok(())
}

/// Name and password: of two flags, of one, or asked for. An empty password is no login, as in etcdctl.
pub(super) fn user(parsed: &Parsed, names: [&str; 2], prompt: &str) -> Result<Option<(String, String)>, Failure> {
    let [user, password] = names.map(|name| parsed.text(name));
    let (name, password) = match user.split_once(':') {
        _ if user.is_empty() => return Ok(None),
        _ if !password.is_empty() => (user.to_owned(), password.to_owned()),
        Some((name, password)) => (name.to_owned(), password.to_owned()),
        None => {
            let password = terminal::secret(prompt).map_err(|error| Failure::new(Exit::Error, error.to_string()))?;
            (user.to_owned(), password)
        }
    };
    Ok((!name.is_empty() && !password.is_empty()).then_some((name, password)))
}

/// The options in effect as variables, without secrets.
pub(super) fn shown(parsed: &Parsed) -> String {
    let line = |flag: &Flag| {
        let value = match flag.kind {
            Kind::Bool => parsed.bool(flag.name).to_string(),
            Kind::Int => parsed.int(flag.name).to_string(),
            Kind::Uint => parsed.uint(flag.name).to_string(),
            Kind::Text if ["user", "password", "auth-jwt-token"].contains(&flag.name) => {
                if parsed.text(flag.name).is_empty() { String::new() } else { "(hidden)".to_owned() }
            }
            Kind::Text => parsed.text(flag.name).to_owned(),
            Kind::Duration => golang::duration(parsed.duration(flag.name)),
            Kind::List => format!("[{}]", parsed.list(flag.name).join(",")),
        };
        format!("{}={value}\n", variable(flag.name))
    };
    let mut flags: Vec<&Flag> = FLAGS.iter().collect();
    flags.sort_by_key(|flag| flag.name);
    flags.into_iter().map(line).collect()
}

/// Variables that begin like ours and mean nothing; a typing error is worth a line.
pub(super) fn unknown_variables(environment: &[(String, String)]) -> Vec<&str> {
    const OTHERS: [&str; 3] = ["ETCDCTL_API", "ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END"];
    environment
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| name.starts_with("ETCDCTL_") && !OTHERS.contains(name))
        .filter(|name| !FLAGS.iter().any(|flag| variable(flag.name) == *name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;
    use crate::net::ServerAuth;

    fn read(line: &str, environment: &[(&str, &str)]) -> Result<Options, Failure> {
        let words: Vec<_> = line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect();
        let known: Vec<&Flag> = FLAGS.iter().collect();
        let environment: Vec<_> = environment.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let options = Options::read(&mut flags::parse(&known, &words).unwrap(), &environment);
        options.usable().map(|()| options)
    }

    #[test]
    fn variables_fill_in_and_never_compete() {
        let options = read("-w json", &[("ETCDCTL_ENDPOINTS", "a:1, b:2"), ("ETCDCTL_DIAL_TIMEOUT", "1s")]).unwrap();
        assert_eq!(options.endpoints, ["a:1", "b:2"]);
        assert_eq!(options.dial_timeout, Duration::from_secs(1));
        let error = read("--endpoints=a:1", &[("ETCDCTL_ENDPOINTS", "b:2")]).err().unwrap();
        assert_eq!(error.code, 1);
        assert!(error.text.contains("ETCDCTL_ENDPOINTS") && error.text.contains("shadowed"));
        // Not a boolean, so not set.
        let options = read("", &[("ETCDCTL_HEX", "maybe"), ("ETCDCTL_COMMAND_TIMEOUT", "9s")]).unwrap();
        assert_eq!((options.printer.hex, options.command_timeout), (false, Duration::from_secs(9)));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        assert_eq!(read("-w bogus", &[]).err().unwrap(), Failure::new(Exit::BadFeature, "unsupported output format"));
        let error = read("--discovery-srv=a/b", &[]).err().unwrap();
        assert_eq!(error.text, "--discovery-srv: \"a/b\" is no domain name");
        assert_eq!(read("--user=root:", &[]).unwrap().user, None);
        assert_eq!(read("--user=root:a:b", &[]).unwrap().user, Some(("root".into(), "a:b".into())));
        assert_eq!(read("--user=root --password=x", &[]).unwrap().user, Some(("root".into(), "x".into())));
    }

    #[test]
    fn anything_of_tls_asks_for_it() {
        let tls = |line: &str| read(line, &[]).unwrap().tls;
        assert_eq!((tls(""), tls("--insecure-transport=true")), (None, None));
        assert_eq!(tls("--insecure-transport=false").unwrap().servers, ServerAuth::System);
        assert_eq!(tls("--cacert=a").unwrap().servers, ServerAuth::File("a".into()));
        let given = tls("--cert=c --key=k --insecure-skip-tls-verify").unwrap();
        assert_eq!((given.servers, given.identity.unwrap().key), (ServerAuth::Skip, "k".into()));
        let text = |line: &str| read(line, &[]).err().unwrap().text;
        assert_eq!(text("--cert=c"), "KeyFile and CertFile must both be present[key: , cert: c]");
        assert_eq!(text("--cacert="), "empty string is passed to --cacert option");
    }

    #[test]
    fn a_misspelt_variable_is_found() {
        let environment = [("ETCDCTL_API".to_owned(), "3".to_owned()), ("ETCDCTL_ENDPOINT".to_owned(), "x".to_owned())];
        assert_eq!(unknown_variables(&environment), ["ETCDCTL_ENDPOINT"]);
    }
}
