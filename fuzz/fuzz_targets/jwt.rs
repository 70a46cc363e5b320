//! JSON web tokens: any bytes as key file and as token. No token is accepted whose signed part no key has signed.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use watershed::core::auth::{Identity, JwtKeys, JwtOptions};

const METHODS: [&str; 12] =
    ["HS256", "HS384", "HS512", "ES256", "ES384", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
const RSA_PRIVATE: &[u8] = include_bytes!("../../src/core/auth/jwt/tests/rsa-private.pem");
const RSA_PUBLIC: &[u8] = include_bytes!("../../src/core/auth/jwt/tests/rsa-public.pem");
const LABELS: [&str; 6] =
    ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"];
/// Beyond the life of any run.
const FUTURE: u64 = 100_000_000_000;
const SECRET: &[u8] = b"a secret of the fuzz target";

fn options(method: &str, public_key: Option<&[u8]>, private_key: Option<&[u8]>) -> JwtOptions {
    let ttl = Duration::from_secs(300);
    let (public_key, private_key) = (public_key.map(<[u8]>::to_vec), private_key.map(<[u8]>::to_vec));
    JwtOptions { method: method.to_owned(), public_key, private_key, ttl }
}

fn who() -> Identity {
    Identity { user: "alice".into(), revision: 7 }
}

/// The keys of one method, the PEM texts they come from, and a token they signed.
struct Signer {
    keys: JwtKeys,
    private: Vec<u8>,
    public: Vec<u8>,
    token: String,
}

fn signers() -> &'static [Signer] {
    static SIGNERS: OnceLock<Vec<Signer>> = OnceLock::new();
    SIGNERS.get_or_init(|| {
        let made = |method: &&str| {
            let pair = |algorithm| {
                let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key");
                (pair.serialize_pem().into_bytes(), pair.public_key_pem().into_bytes())
            };
            let (private, public) = match &method[..2] {
                "HS" => (SECRET.to_vec(), Vec::new()),
                "ES" if *method == "ES256" => pair(&rcgen::PKCS_ECDSA_P256_SHA256),
                "ES" => pair(&rcgen::PKCS_ECDSA_P384_SHA384),
                "Ed" => pair(&rcgen::PKCS_ED25519),
                _ => (RSA_PRIVATE.to_vec(), RSA_PUBLIC.to_vec()),
            };
            let keys = JwtKeys::new(&options(method, None, Some(&private))).expect("keys");
            let token = keys.sign(&who(), FUTURE).expect("signed");
            Signer { keys, private, public, token }
        };
        METHODS.iter().map(made).collect()
    })
}

/// Changes bytes at places of the input's choice.
fn changed(bytes: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] ^= change[2];
    }
    bytes
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der)).into_bytes()
}

fn der(pem: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(pem).expect("PEM is text");
    let lines: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(lines).unwrap_or_default()
}

/// Keys that were read sign what they verify; another key accepts none of it.
fn key_file(method: usize, public: Option<&[u8]>, private: Option<&[u8]>) {
    let Ok(keys) = JwtKeys::new(&options(METHODS[method], public, private)) else { return };
    if let Ok(token) = keys.sign(&who(), FUTURE) {
        assert_eq!(keys.identity(&token), Some(who()));
    }
    assert_eq!(keys.identity(""), None);
}

/// A token of anybody's making. It may be accepted only if its signed part is that of a token of ours.
fn forged(signer: &Signer, token: &str) {
    if let Some(identity) = signer.keys.identity(token) {
        let signed = token.rsplit_once('.').map(|(signed, _)| signed);
        assert_eq!(signed, signer.token.rsplit_once('.').map(|(signed, _)| signed), "a forged token: {token}");
        assert_eq!(identity, who());
    }
}

fn hmac(method: &str, secret: &[u8], signed: &str) -> Vec<u8> {
    let algorithm = match &method[2..] {
        "256" => ring::hmac::HMAC_SHA256,
        "384" => ring::hmac::HMAC_SHA384,
        _ => ring::hmac::HMAC_SHA512,
    };
    ring::hmac::sign(&ring::hmac::Key::new(algorithm, secret), signed.as_bytes()).as_ref().to_vec()
}

/// Header and claims of the input, with signatures that need no private key.
fn assembled(signer: &Signer, rest: &[u8]) {
    let Some((&cut, rest)) = rest.split_first() else { return };
    let (header, claims) = rest.split_at(usize::from(cut).min(rest.len()));
    let ours: Vec<&str> = signer.token.split('.').collect();
    for header in [ours[0].to_owned(), URL_SAFE_NO_PAD.encode(header)] {
        for claims in [ours[1].to_owned(), URL_SAFE_NO_PAD.encode(claims)] {
            let signed = format!("{header}.{claims}");
            forged(signer, &format!("{signed}."));
            forged(signer, &format!("{signed}.{}", ours[2]));
            for method in &METHODS[..3] {
                // A public key is known to everybody: it must not count as a secret.
                let signature = hmac(method, &signer.public, &signed);
                forged(signer, &format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)));
            }
        }
    }
}

/// Claims and header of the input, signed with the secret: whom they name, and no longer than they say.
fn claims(method: usize, rest: &[u8]) {
    let Some((&cut, rest)) = rest.split_first() else { return };
    let (header, claims) = rest.split_at(usize::from(cut).min(rest.len()));
    let name = METHODS[method % 3];
    let default = format!(r#"{{"alg":"{name}","typ":"JWT"}}"#);
    for header in [default.as_bytes(), header] {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac(name, SECRET, &signed)));
        for _ in 0..2 {
            // The second time it may be known.
            let Some(identity) = signers()[method % 3].keys.identity(&token) else { break };
            let said: serde_json::Value = serde_json::from_slice(claims).expect("claims are JSON");
            // The library looks at no text that it does not need.
            let header = String::from_utf8_lossy(header);
            let header: serde_json::Value = serde_json::from_str(&header).expect("a header is JSON");
            assert_eq!(header["alg"], name);
            assert_eq!(said["username"].as_str(), Some(&*identity.user));
            assert!(said["revision"].is_number());
            let ended = said["exp"].as_f64().is_some_and(|end| end < 1_700_000_000.0);
            assert!(!ended, "it has expired");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [kind, method, rest @ ..] = data else { return };
    let method = usize::from(*method) % METHODS.len();
    let signer = &signers()[method];
    let (label, low) = (LABELS[usize::from(kind >> 4) % LABELS.len()], kind % 16);
    match low {
        0 => key_file(method, None, Some(rest)),
        1 => key_file(method, Some(rest), None),
        2 => key_file(method, Some(rest), Some(&signer.private)),
        3 => key_file(method, None, Some(&pem(label, rest))),
        4 => key_file(method, Some(&pem(label, rest)), None),
        // HS keys are no PEM.
        5 | 6 if method > 2 => {
            key_file(method, None, Some(&changed(&signer.private, rest)));
            key_file(method, None, Some(&pem("PRIVATE KEY", &changed(&der(&signer.private), rest))));
        }
        7 | 8 if method > 2 => {
            key_file(method, Some(&changed(&signer.public, rest)), Some(&signer.private));
            key_file(method, Some(&pem("PUBLIC KEY", &changed(&der(&signer.public), rest))), None);
        }
        9 => claims(method, rest),
        10 => assembled(signer, rest),
        11 => forged(signer, &String::from_utf8_lossy(&changed(signer.token.as_bytes(), rest))),
        12 => forged(signer, &String::from_utf8_lossy(rest)),
        _ => {
            // Another part in place of each of its own.
            let text = String::from_utf8_lossy(rest);
            let ours: Vec<&str> = signer.token.split('.').collect();
            forged(signer, &format!("{text}.{}.{}", ours[1], ours[2]));
            forged(signer, &format!("{}.{text}.{}", ours[0], ours[2]));
            forged(signer, &format!("{}.{}.{text}", ours[0], ours[1]));
        }
    }
});
