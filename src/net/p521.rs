//! Signatures by keys on the curve P-521, which ring does not know: etcd makes such keys for `--auto-tls` and
//! `--peer-auto-tls`. We verify them; our own certificates have other keys.

use std::sync::LazyLock;

use p521::ecdsa::signature::Verifier;
use p521::ecdsa::{DerSignature, Signature, VerifyingKey};
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use tokio_rustls::rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

/// ECDSA on P-521 with SHA-512.
#[derive(Debug)]
struct EcdsaP521Sha512;

impl SignatureVerificationAlgorithm for EcdsaP521Sha512 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = DerSignature::from_bytes(signature).map_err(|_| InvalidSignature)?;
        let signature = Signature::try_from(signature).map_err(|_| InvalidSignature)?;
        key.verify(message, &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA512
    }
}

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

const P521: Algorithms = &[&EcdsaP521Sha512];

static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| [known().all, P521].concat());

static MAPPING: LazyLock<Vec<(SignatureScheme, Algorithms)>> =
    LazyLock::new(|| [known().mapping, &[(SignatureScheme::ECDSA_NISTP521_SHA512, P521)]].concat());

fn known() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

/// What ring verifies, and this.
pub(super) fn signature_verification_algorithms() -> WebPkiSupportedAlgorithms {
    WebPkiSupportedAlgorithms { all: &ALL, mapping: &MAPPING }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-521 -nodes -sha512 -subj /CN=p521 -days 36500`
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIB/TCCAV6gAwIBAgIULELx1MMxyg/ANFIRjuPv4s5qrFMwCgYIKoZIzj0EAwQw
DzENMAsGA1UEAwwEcDUyMTAgFw0yNjExMjkxMDMyNDhaGA8yMTI2MTEwNTEwMzI0
OFowDzENMAsGA1UEAwwEcDUyMTCBmzAQBgcqhkjOPQIBBgUrgQQAIwOBhgAEAVkb
sDhHV3QcT2MvrLctLlJNAkZS2Uba/YBnTtttpeepcY84NgzMz0n3FX+4Dnuy1D/9
ZQfypuYPIM/dUNOd/iWxAFETurGZ+NUZm8vftdOm9GEnLMnMA57dRNdHgJMZUDz7
Pa/U+J5DIsQtcXCeq34yCzn5TXeYAv8qE2i9QNWt5sMJo1MwUTAdBgNVHQ4EFgQU
X5a/Ao2NxXWoj1i7tAirLrX3QIYwHwYDVR0jBBgwFoAUX5a/Ao2NxXWoj1i7tAir
LrX3QIYwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDBAOBjAAwgYgCQgDNgDrn
ObrabVDxLuYz+EO1Rt9oZ/U01C3vg35HQ02xZgvjA55TyZpWSi0MzplgaKGq6Dyc
Fm3RU7iRohA/a+uivwJCALjyd9/fe+5QXxcKtJLsvgEkLAV/hw+sRAuU00Q98af2
9A9GKgVQxXDuSLy25KD6uCpmt74soIUgSo9an+l0WgwI
-----END CERTIFICATE-----
";

    #[test]
    fn a_signature_by_a_key_on_p521_is_verified() {
        let der = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let message = parsed.tbs_certificate.as_ref();
        let (key, signature) = (&parsed.public_key().subject_public_key.data, &parsed.signature_value.data);
        let algorithms = signature_verification_algorithms();
        let (_, chosen) =
            algorithms.mapping.iter().find(|(name, _)| *name == SignatureScheme::ECDSA_NISTP521_SHA512).unwrap();
        let verify =
            |key: &[u8], message: &[u8], signature: &[u8]| chosen[0].verify_signature(key, message, signature).is_ok();
        assert!(verify(key, message, signature));
        assert!(!verify(key, &message[1..], signature));
        assert!(!verify(&key[1..], message, signature));
        assert!(!verify(key, message, &signature[..signature.len() - 1]));
        assert_eq!(algorithms.all.len(), known().all.len() + 1);
        assert!(algorithms.supported_schemes().contains(&SignatureScheme::ECDSA_NISTP256_SHA256));
    }
}
