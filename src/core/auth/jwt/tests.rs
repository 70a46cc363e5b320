use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

const TTL: Duration = Duration::from_secs(300);
/// Some time in the past: tokens of it with a `ttl` of a few minutes have expired.
const LONG_AGO: u64 = 1_700_000_000;
/// Beyond the life of any test.
const FUTURE: u64 = 100_000_000_000;

fn options(method: &str, public: Option<&str>, private: Option<&str>) -> JwtOptions {
    let bytes = |key: Option<&str>| key.map(|key| key.as_bytes().to_vec());
    JwtOptions { method: method.to_owned(), public_key: bytes(public), private_key: bytes(private), ttl: TTL }
}

fn alice() -> Identity {
    Identity { user: "alice".into(), revision: 7 }
}

/// A new key pair as PEM, private and public.
fn pair(method: &str) -> (String, String) {
    let algorithm = match method {
        "ES256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ES384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        _ => &rcgen::PKCS_ED25519,
    };
    let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key");
    (pair.serialize_pem(), pair.public_key_pem())
}

const RSA_PRIVATE: &str = include_str!("tests/rsa-private.pem");
const RSA_PUBLIC: &str = include_str!("tests/rsa-public.pem");
const RSA_PKCS1: &str = include_str!("tests/rsa-pkcs1.pem");
const EC_SEC1: &str = include_str!("tests/ec-sec1.pem");
const EC_PUBLIC: &str = include_str!("tests/ec-public.pem");

fn check(method: &str, private: &str, public: &str) {
    let signer = JwtKeys::new(&options(method, None, Some(private))).expect(method);
    let both = JwtKeys::new(&options(method, Some(public), Some(private))).expect(method);
    let verifier = JwtKeys::new(&options(method, Some(public), None)).expect(method);
    let token = signer.sign(&alice(), FUTURE).expect(method);
    for keys in [&signer, &both, &verifier] {
        assert_eq!(keys.identity(&token), Some(alice()), "{method}");
        assert_eq!(keys.identity(&signer.sign(&alice(), LONG_AGO).expect("signed")), None, "{method}: expired");
    }
    assert_eq!(verifier.sign(&alice(), FUTURE), Err(JwtError::VerifyOnly), "{method}");
}

#[test]
fn every_method_signs_and_verifies() {
    for method in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        check(method, RSA_PRIVATE, RSA_PUBLIC);
    }
    check("RS256", RSA_PKCS1, RSA_PUBLIC);
    check("ES256", EC_SEC1, EC_PUBLIC);
    for method in ["ES256", "ES384", "EdDSA"] {
        let (private, public) = pair(method);
        check(method, &private, &public);
    }
    for method in ["HS256", "HS384", "HS512"] {
        let keys = JwtKeys::new(&options(method, None, Some("secret"))).expect(method);
        assert_eq!(keys.identity(&keys.sign(&alice(), FUTURE).expect("signed")), Some(alice()));
    }
}

#[test]
fn wrong_options_are_refused() {
    let refused = |options| JwtKeys::new(&options).err().map(|error| error.to_string()).expect("refused");
    let (ed, ed_public) = pair("EdDSA");
    assert_eq!(refused(options("none", None, None)), "auth: invalid auth options");
    assert_eq!(refused(options("RS256", None, None)), "auth: missing key data");
    assert_eq!(refused(options("HS256", Some("x"), None)), "auth: missing key data");
    assert_eq!(refused(options("HS256", None, Some(""))), "auth: missing key data");
    assert_eq!(
        refused(options("EdDSA", Some(&pair("EdDSA").1), Some(&ed))),
        "auth: public and private keys don't match"
    );
    let unusable = refused(options("RS256", None, Some(&ed)));
    assert_eq!(unusable, "priv-key holds no key that sign-method RS256 can use");
    assert_eq!(
        refused(options("ES256", Some(&ed_public), None)),
        "pub-key holds no key that sign-method ES256 can use"
    );
    assert!(refused(options("ES512", None, None)).contains("ES512 is not supported"));
}

/// Tokens that no member signed, or that say nothing: each is refused, and nothing panics.
#[test]
fn hostile_tokens_are_refused() {
    let keys = JwtKeys::new(&options("HS256", None, Some("secret"))).expect("keys");
    let good = keys.sign(&alice(), FUTURE).expect("signed");
    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let none = encoded(r#"{"alg":"none","typ":"JWT"}"#);
    let mut hostile = vec![
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "\u{0}".to_owned(),
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{header}.{claims}."),
        format!("{header}.{claims}"),
        format!("{header}.{}.{signature}", encoded(r#"{"username":"root","revision":7,"exp":99999999999}"#)),
        "x".repeat(1 << 20),
        format!("{}.{claims}.{signature}", encoded(r#"{"alg":"HS512"}"#)),
    ];
    for claims in [
        json!({}),
        json!(null),
        json!([]),
        json!({ "username": 1, "revision": 1 }),
        json!({ "username": "alice" }),
        json!({ "revision": 1 }),
        json!({ "username": "alice", "revision": "1" }),
        json!({ "username": "alice", "revision": 1, "exp": LONG_AGO }),
        json!({ "username": "alice", "revision": 1, "nbf": FUTURE }),
    ] {
        hostile.push(keys.encode(&claims).expect("signed"));
    }
    for token in hostile {
        assert_eq!(keys.identity(&token), None, "{}", &token[..token.len().min(200)]);
    }
    let unusual = keys.encode(&json!({ "username": "", "revision": -1.5 })).expect("signed");
    assert_eq!(keys.identity(&unusual), Some(Identity::default()), "nobody, as etcd has it");
    // A key meant for verification must not verify what was signed with it as a secret.
    let rsa = JwtKeys::new(&options("RS256", Some(RSA_PUBLIC), None)).expect("keys");
    let confused = JwtKeys::new(&options("HS256", None, Some(RSA_PUBLIC))).expect("keys");
    assert_eq!(rsa.identity(&confused.sign(&alice(), FUTURE).expect("signed")), None);
    assert!(!format!("{keys:?}").contains("secret"));
}

#[test]
fn a_verified_token_is_known_until_its_end_and_no_other_is() {
    let keys = JwtKeys::new(&options("HS256", None, Some("secret"))).expect("keys");
    let token = keys.sign(&alice(), 1000).expect("signed");
    let claims = |exp| json!({ "username": "alice", "revision": 7, "exp": exp });
    let verified = VerifiedTokens::new();
    assert_eq!(verified.get(&token, 1000), None);
    verified.add(&token, &alice(), &claims(1300));
    assert_eq!(verified.get(&token, 1299), Some(alice()));
    assert_eq!(verified.get(&token, 1300), None, "verified again, which refuses it");
    let (signed, signature) = token.rsplit_once('.').expect("a signature");
    for other in [signed.to_owned(), format!("{signed}."), format!("{token} "), signature.to_owned()] {
        assert_eq!(verified.get(&other, 1000), None, "{other}");
    }
    for claims in [json!({ "exp": 1e12 }), json!({ "exp": 99_999_999, "nbf": 1 }), json!({ "exp": "99999999" })] {
        verified.add("t", &alice(), &claims);
        assert_eq!(verified.get("t", 1000), None, "{claims}");
    }
    verified.add("without an end", &alice(), &json!({}));
    assert_eq!(verified.get("without an end", FUTURE), Some(alice()));

    // What was refused is not remembered, and however many are verified, the bytes have a bound.
    let keys = JwtKeys::new(&options("HS256", None, Some("secret"))).expect("keys");
    let before = keys.verified.bytes();
    assert_eq!(keys.identity(&keys.sign(&alice(), LONG_AGO).expect("signed")), None);
    assert_eq!(keys.identity(&format!("{signed}.x")), None);
    assert_eq!(keys.verified.bytes(), before);
    let long = "t".repeat(10_000);
    for number in 0..2000 {
        keys.verified.add(&format!("{number}{long}"), &alice(), &claims(1300));
    }
    assert!(keys.verified.bytes() <= 4 * 1024 * 1024, "{}", keys.verified.bytes());
}
