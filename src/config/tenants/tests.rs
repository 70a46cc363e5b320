use std::path::Path;

use super::read::tenants;
use super::*;

const ALL: ListenerFacts = ListenerFacts { tls: true, client_certificates: true, metrics: None };

fn parse(text: &str) -> Result<Vec<TenantConfig>, String> {
    tenants(text, Path::new("/folder"), ALL)
}

/// A file with one line for each tenant.
fn file(tenants: &[&str]) -> String {
    let lines: Vec<_> = tenants.iter().map(|tenant| format!("  - {{{tenant}}}\n")).collect();
    format!("tenants:\n{}", lines.concat())
}

#[test]
fn a_whole_file_is_read() {
    let text = "
tenants:
  - name: team-a
    namespace: /team-a/
    match:
      - listen: 127.0.0.1:23801
      - {sni: A.Example., common-name: Team A}
    upstream: {user: a, password: 'x'}
    contains: [dev]
  - name: dev
    namespace-hex: 2f7465616d2d612fff
    match:
      - dns-name: dev.Example
      - spiffe-id: spiffe://example/dev
    upstream: {cert-file: dev.crt, key-file: /k/dev.key}
    read-only: true
  - name: b
    namespace: b
    match: [{user: bob}]
    admin: yes
    compact: agreed
    limits: {requests-per-second: 10, bytes-per-second: 1000, watches: 3, leases: 4, stored-keys: 6, stored-bytes: 7, answer-bytes: 5}
";
    let tenants = parse(text).unwrap();
    let names: Vec<_> = tenants.iter().map(|tenant| (tenant.name.as_str(), &tenant.namespace[..])).collect();
    assert_eq!(names, [("team-a", &b"/team-a/"[..]), ("dev", b"/team-a/\xff"), ("b", b"b")]);
    assert_eq!(
        tenants[0].matches,
        [
            TenantMatch { listen: Some("127.0.0.1:23801".parse().unwrap()), ..TenantMatch::default() },
            TenantMatch { sni: Some("a.example".into()), common_name: Some("Team A".into()), ..TenantMatch::default() },
        ]
    );
    let password = Credentials { name: "a".into(), password: "x".into() };
    assert_eq!(tenants[0].upstream, Some(TenantCredentials::Password(password)));
    let files = TenantCredentials::Certificate { cert_file: "/folder/dev.crt".into(), key_file: "/k/dev.key".into() };
    assert_eq!(tenants[1].upstream, Some(files));
    assert_eq!(
        tenants.iter().map(|tenant| (tenant.read_only, tenant.admin)).collect::<Vec<_>>(),
        [(false, false), (true, false), (false, true)]
    );
    let limits = TenantLimits {
        requests_per_second: Some(10),
        bytes_per_second: Some(1000),
        watches: Some(3),
        leases: Some(4),
        stored_keys: Some(6),
        stored_bytes: Some(7),
        answer_bytes: Some(5),
    };
    assert_eq!((tenants[0].compact, tenants[2].compact), (CompactRight::Deny, CompactRight::Agreed));
    assert_eq!((tenants[0].limits, tenants[2].limits), (TenantLimits::default(), limits));
    assert_eq!(parse("tenants: []").unwrap(), []);
}

#[test]
fn the_examples_are_taken() {
    // Cause: two tenants of the example in docs/proxy-semantics.md had one namespace, and neither named the other.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("reader.password"), "secret\n").unwrap();
    let page = include_str!("../../../docs/proxy-semantics.md");
    let (_, example) = page.split_once("```yaml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    for text in [example, include_str!("../../../contrib/tenants.yaml")] {
        assert_eq!(tenants(text, folder.path(), ALL).unwrap().len(), 3, "{text}");
    }
}

#[test]
fn a_refusal_names_line_and_field() {
    let a = "name: a, namespace: a/, match: [{user: a}]";
    for (text, expected) in [
        ("", "line 1: must be a mapping, not null"),
        ("tenants: 5", "line 1: tenants: must be a list, not number 5"),
        ("{}", "line 1: needs a list \"tenants\""),
        ("tenants: []\ntenant: []", "line 2: tenant: is not a key of this file"),
        ("tenants: []\ntenants: []", "line 2: \"tenants\" is given twice"),
        ("tenants: [", "yaml: line 2: "),
        (&file(&[a, "namespace: b"]), "line 3: tenants[1]: needs a name"),
        (&file(&["name: 5"]), "line 2: tenants[0].name: must be text, not number 5; quote it"),
        (&file(&["name: 'a b'"]), "line 2: tenants[0].name: must be at most 64 letters"),
        (&file(&["name: a"]), "line 2: tenants[0]: needs a namespace"),
        (&file(&["name: a, namespace: ''"]), "line 2: tenants[0].namespace: must not be empty"),
        (&file(&["name: a, namespace-hex: 'zz'"]), "namespace-hex: must be pairs of hexadecimal digits"),
        (&file(&["name: a, namespace-hex: '00'"]), "namespace-hex: keys that begin with a zero byte are reserved"),
        (&file(&["name: a, namespace: b, namespace-hex: '61'"]), "the namespace is given twice"),
        (&file(&["name: a, namespace: b"]), "line 2: tenants[0]: needs a match"),
        (&file(&["name: a, namespace: b, match: []"]), "line 2: tenants[0]: needs a match"),
        (&file(&["name: a, namespace: b, match: [{}]"]), "tenants[0].match[0]: must name one of listen"),
        (&file(&["name: a, namespace: b, match: [{sni: s, cn: c}]"]), "match[0].cn: is not a key of this file"),
        (&file(&["name: a, namespace: b, match: [{listen: ':1'}]"]), "match[0].listen: must be an IP address and"),
        (&file(&["name: a, namespace: b, match: [{listen: '[::1]:0'}]"]), "listen: must be an IP address and a port"),
        (&file(&["name: a, namespace: b, match: [{spiffe-id: x}]"]), "spiffe-id: must have the form spiffe://"),
        (&file(&[&format!("{a}, read-only: 1")]), "tenants[0].read-only: must be true or false, not number 1"),
        (&file(&[&format!("{a}, read-only: true, admin: true")]), "cannot be both read-only and admin"),
        (&file(&[&format!("{a}, compact: always")]), "tenants[0].compact: must be deny, allow or agreed"),
        (&file(&[&format!("{a}, compact: allow, read-only: true")]), "compact: a tenant that is read-only compacts"),
        (&file(&[&format!("{a}, limits: {{watches: 0}}")]), "tenants[0].limits.watches: must be at least 1"),
        (&file(&[&format!("{a}, limits: {{leases: x}}")]), "limits.leases: must be a whole number, not string"),
        (&file(&[&format!("{a}, limits: {{watch: 5}}")]), "tenants[0].limits.watch: is not a key of this file"),
        (&file(&[&format!("{a}, limit: 5")]), "line 2: tenants[0].limit: is not a key of this file"),
        (&file(&[&format!("{a}, upstream: {{user: a}}")]), "tenants[0].upstream: needs user and one of password"),
        (
            &file(&["name: a, namespace: b, match: [{sni: s}], upstream: {user: a, password-file: none}"]),
            "tenants[0].upstream.password-file: /folder/none: No such file",
        ),
        (
            &file(&[&format!("{a}, upstream: {{user: a, password: b}}")]),
            "tenants[0].upstream: a request that is known by its token",
        ),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.contains(expected) && !error.contains('\n'), "{text}\n{error}");
    }
}

#[test]
fn tenants_do_not_meet_by_mistake() {
    let tenant = |name: &str, namespace: &str, one: &str, more: &str| {
        format!("name: {name}, namespace: {namespace}, match: [{{{one}}}]{more}")
    };
    let check = |tenants: &[String], expected: &str| {
        let lines: Vec<&str> = tenants.iter().map(String::as_str).collect();
        match parse(&file(&lines)) {
            Ok(_) => assert_eq!(expected, "", "{tenants:?}"),
            Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{tenants:?}\n{error}"),
        }
    };
    let two = |one: [&str; 3], other: [&str; 3]| {
        [tenant("x", one[0], one[1], one[2]), tenant("o", other[0], other[1], other[2])]
    };
    check(&two(["a/", "sni: s", ""], ["b/", "sni: t", ""]), "");
    check(&[tenant("x", "a", "sni: s", ""), tenant("x", "b", "sni: t", "")], "line 3: tenants[1].name: \"x\" is the");
    // Namespaces.
    let lies = "tenants[0].namespace: \"a/b\" lies within that of \"o\" at line 3, which does not have \"x\" in";
    check(&two(["a/b", "sni: s", ""], ["a/", "sni: t", ""]), lies);
    check(&two(["a/b", "sni: s", ", contains: [o]"], ["a/", "sni: t", ""]), lies);
    check(&two(["a/b", "sni: s", ""], ["a/", "sni: t", ", contains: [x]"]), "");
    check(
        &two(["team", "sni: s", ""], ["team-a", "sni: t", ""]),
        "line 3: tenants[1].namespace: \"team-a\" lies within",
    );
    check(&two(["a", "sni: s", ""], ["a", "sni: t", ""]), "tenants[1].namespace: \"a\" is the same as that of \"x\"");
    check(&two(["a", "sni: s", ", contains: [o]"], ["a", "sni: t", ""]), "");
    check(&two(["a", "sni: s", ""], ["a", "sni: t", ", contains: [x]"]), "");
    check(&two(["a", "sni: s", ", contains: [z]"], ["b", "sni: t", ""]), "contains[0]: there is no tenant \"z\"");
    check(
        &two(["a", "sni: s", ", contains: [o]"], ["b", "sni: t", ""]),
        "contains[0]: the namespace of \"o\" does not",
    );
    // Matches.
    check(&two(["a", "sni: S.", ""], ["b", "sni: s", ""]), "line 3: tenants[1].match[0]: the same stands at line 2");
    let both = "line 3: tenants[1].match[0]: whatever this matches is matched by \"x\" at line 2, too";
    check(&two(["a", "sni: s", ""], ["b", "sni: s, user: u", ""]), both);
    check(&two(["a", "sni: s, user: u", ""], ["b", "sni: s, common-name: c", ""]), "");
}

#[test]
fn what_no_listener_can_know_is_refused() {
    let metrics = Some("127.0.0.1:9".parse().unwrap());
    let plain = ListenerFacts { tls: false, client_certificates: false, metrics };
    for (one, expected) in [
        ("sni: s", "match[0].sni: no listener knows it without --cert-file and --key-file"),
        ("common-name: s", "match[0].common-name: no listener knows it without --trusted-ca-file"),
        ("dns-name: s", "match[0].dns-name: no listener knows it without --trusted-ca-file"),
        ("spiffe-id: 'spiffe://a/b'", "match[0].spiffe-id: no listener knows it without --trusted-ca-file"),
        ("listen: '127.0.0.1:9'", "match[0].listen: is the address of --metrics-addr"),
    ] {
        let text = file(&[&format!("name: a, namespace: b, match: [{{{one}}}]")]);
        let error = tenants(&text, Path::new(""), plain).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_thousand_tenants_are_read() {
    let tenants: Vec<String> =
        (0..2000).map(|n| format!("name: t{n}, namespace: /t{n}/, match: [{{user: u{n}}}, {{sni: s{n}}}]")).collect();
    let lines: Vec<&str> = tenants.iter().map(String::as_str).collect();
    assert_eq!(parse(&file(&lines)).unwrap().len(), 2000);
}

#[test]
fn a_password_is_not_printed() {
    let text = file(&["name: a, namespace: b, match: [{sni: s}], upstream: {user: a, password: secret}"]);
    assert!(!format!("{:?}", parse(&text).unwrap()).contains("secret"));
}

#[test]
fn any_text_is_read_or_refused() {
    proptest::proptest!(|(text in "(tenants|name|match|- |: |\\[|\\]|\\{|\\}|a|5|\n|  |,){0,40}")| { let _ = parse(&text); });
}

#[test]
fn all_addresses_of_ipv4_are_those_of_both_families() {
    // Cause: with `--listen-addr=:7` this was not the listener of the flag, but one more on a port in use.
    let listens = |one: &str, listeners| {
        let text = file(&[&format!("name: a, namespace: b, match: [{{listen: '{one}'}}]")]);
        tenants(&text, Path::new(""), listeners).map(|tenants| tenants[0].matches[0].listen.unwrap().to_string())
    };
    assert_eq!(listens("0.0.0.0:7", ALL).as_deref(), Ok("[::]:7"));
    assert_eq!(listens("0.0.0.0:8", ALL).as_deref(), Ok("[::]:8"));
    assert_eq!(listens("127.0.0.1:7", ALL).as_deref(), Ok("127.0.0.1:7"));
    let of_metrics = ListenerFacts { metrics: Some("[::]:8".parse().unwrap()), ..ALL };
    assert!(listens("0.0.0.0:8", of_metrics).unwrap_err().contains("is the address of --metrics-addr"));
}
