use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::state::Identity;
use crate::telemetry::unix_seconds;
use verified::VerifiedTokens;

mod verified;

/// Why tokens cannot be signed or verified.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("auth: invalid auth options")]
    InvalidOptions,
    /// etcd signs with it, the library here does not.
    #[error("sign-method {0} is not supported by this program; use ES256, ES384 or another method")]
    Unsupported(String),
    #[error("auth: missing key data")]
    MissingKey,
    #[error("auth: public and private keys don't match")]
    KeyMismatch,
    /// Nothing of the key is in the text.
    #[error("{file} holds no key that sign-method {method} can use")]
    UnusableKey { file: &'static str, method: String },
    #[error("auth: token signing attempted with verify-only key")]
    VerifyOnly,
    #[error("token cannot be signed")]
    Signing,
}

/// How tokens are signed.
pub struct JwtOptions {
    /// `RS256` and the like.
    pub method: String,
    /// Contents of the file with the public key.
    pub public_key: Option<Vec<u8>>,
    /// Contents of the file with the private key.
    pub private_key: Option<Vec<u8>>,
    /// How long a token is valid.
    pub ttl: Duration,
}

/// The keys that sign and verify JSON web tokens.
pub struct JwtKeys {
    algorithm: Algorithm,
    /// None on a member that verifies only.
    sign: Option<EncodingKey>,
    verify: DecodingKey,
    validation: Validation,
    ttl: Duration,
    verified: VerifiedTokens,
}

/// The algorithm, and nothing of the keys.
impl fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKeys").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Rsa,
    Ec,
    Ed,
    Secret,
}

impl JwtKeys {
    /// Reads the keys.
    ///
    /// # Errors
    /// The method is unknown, or keys are missing, unusable or not a pair.
    pub fn new(options: &JwtOptions) -> Result<Self, JwtError> {
        let (algorithm, family) = match options.method.as_str() {
            "RS256" => (Algorithm::RS256, Family::Rsa),
            "RS384" => (Algorithm::RS384, Family::Rsa),
            "RS512" => (Algorithm::RS512, Family::Rsa),
            "PS256" => (Algorithm::PS256, Family::Rsa),
            "PS384" => (Algorithm::PS384, Family::Rsa),
            "PS512" => (Algorithm::PS512, Family::Rsa),
            "ES256" => (Algorithm::ES256, Family::Ec),
            "ES384" => (Algorithm::ES384, Family::Ec),
            "EdDSA" => (Algorithm::EdDSA, Family::Ed),
            "HS256" => (Algorithm::HS256, Family::Secret),
            "HS384" => (Algorithm::HS384, Family::Secret),
            "HS512" => (Algorithm::HS512, Family::Secret),
            "ES512" => return Err(JwtError::Unsupported(options.method.clone())),
            _ => return Err(JwtError::InvalidOptions),
        };
        let (sign, verify) = match family {
            Family::Secret => {
                let secret =
                    options.private_key.as_deref().filter(|key| !key.is_empty()).ok_or(JwtError::MissingKey)?;
                (Some(EncodingKey::from_secret(secret)), DecodingKey::from_secret(secret))
            }
            family => pair(options, algorithm, family)?,
        };
        let mut validation = Validation::new(algorithm);
        // Expiry is checked to the second, where a token has one; nothing else is asked for, as in etcd.
        validation.leeway = 0;
        validation.required_spec_claims.clear();
        validation.validate_nbf = true;
        validation.validate_aud = false;
        let keys = Self { algorithm, sign, verify, validation, ttl: options.ttl, verified: VerifiedTokens::new() };
        match &keys.sign {
            Some(_) if !keys.signs_what_it_verifies() => Err(JwtError::KeyMismatch),
            _ => Ok(keys),
        }
    }

    fn signs_what_it_verifies(&self) -> bool {
        // Far in the future: the clock has no say in it.
        self.encode(&json!({ "username": "", "revision": 1, "exp": 253_402_300_799_u64 }))
            .is_ok_and(|token| self.identity(&token).is_some())
    }

    fn encode(&self, claims: &Value) -> Result<String, JwtError> {
        let key = self.sign.as_ref().ok_or(JwtError::VerifyOnly)?;
        jsonwebtoken::encode(&Header::new(self.algorithm), claims, key).map_err(|_| JwtError::Signing)
    }

    /// Signs a token for a user; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// This member has no private key.
    pub fn sign(&self, who: &Identity, now: u64) -> Result<String, JwtError> {
        let until = now.saturating_add(self.ttl.as_secs());
        self.encode(&json!({ "username": &*who.user, "revision": who.revision, "exp": until }))
    }

    /// Whom a token is for; none if its signature, its form or its time is not right.
    pub fn identity(&self, token: &str) -> Option<Identity> {
        if let Some(identity) = self.verified.get(token, unix_seconds().unsigned_abs()) {
            return Some(identity);
        }
        let claims = jsonwebtoken::decode::<Value>(token, &self.verify, &self.validation).ok()?.claims;
        let user: Arc<str> = claims.get("username")?.as_str()?.into();
        let revision = claims.get("revision")?;
        // Any number, as in etcd; what is none that a revision can have is an old one.
        let revision = revision.as_u64().or_else(|| revision.as_f64().map(|number| number as u64))?;
        let identity = Identity { user, revision };
        self.verified.add(token, &identity, &claims);
        Some(identity)
    }
}

fn pair(
    options: &JwtOptions,
    algorithm: Algorithm,
    family: Family,
) -> Result<(Option<EncodingKey>, DecodingKey), JwtError> {
    let unusable = |file| JwtError::UnusableKey { file, method: options.method.clone() };
    let given = |key: &Option<Vec<u8>>| key.clone().filter(|key| !key.is_empty());
    let private = match given(&options.private_key) {
        Some(pem) => Some(private_key(&pem, algorithm, family).ok_or_else(|| unusable("priv-key"))?),
        None => None,
    };
    let public = match given(&options.public_key) {
        Some(pem) => Some(public_key(&pem, family).ok_or_else(|| unusable("pub-key"))?),
        None => None,
    };
    match (private, public) {
        (Some((sign, derived)), public) => Ok((Some(sign), public.unwrap_or(derived))),
        (None, Some(verify)) => Ok((None, verify)),
        (None, None) => Err(JwtError::MissingKey),
    }
}

fn public_key(pem: &[u8], family: Family) -> Option<DecodingKey> {
    match family {
        Family::Rsa => DecodingKey::from_rsa_pem(pem).ok(),
        Family::Ec => DecodingKey::from_ec_pem(pem).ok(),
        Family::Ed => DecodingKey::from_ed_pem(pem).ok(),
        Family::Secret => None,
    }
}

/// The private key, and the public one that belongs to it.
fn private_key(pem: &[u8], algorithm: Algorithm, family: Family) -> Option<(EncodingKey, DecodingKey)> {
    let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
    match family {
        Family::Rsa => {
            let pair = match &der {
                PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok()?,
                PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()?,
                _ => return None,
            };
            Some((EncodingKey::from_rsa_pem(pem).ok()?, DecodingKey::from_rsa_der(pair.public_key().as_ref())))
        }
        Family::Ec => {
            let (signing, curve) = match algorithm {
                Algorithm::ES256 => (&ECDSA_P256_SHA256_FIXED_SIGNING, P256),
                _ => (&ECDSA_P384_SHA384_FIXED_SIGNING, P384),
            };
            let pkcs8 = match &der {
                PrivateKeyDer::Pkcs8(der) => der.secret_pkcs8_der().to_vec(),
                PrivateKeyDer::Sec1(der) => pkcs8_of_sec1(der.secret_sec1_der(), curve)?,
                _ => return None,
            };
            let pair = EcdsaKeyPair::from_pkcs8(signing, &pkcs8, &SystemRandom::new()).ok()?;
            Some((EncodingKey::from_ec_der(&pkcs8), DecodingKey::from_ec_der(pair.public_key().as_ref())))
        }
        Family::Ed => {
            let PrivateKeyDer::Pkcs8(der) = &der else { return None };
            let der = der.secret_pkcs8_der();
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
            Some((EncodingKey::from_ed_der(der), DecodingKey::from_ed_der(pair.public_key().as_ref())))
        }
        Family::Secret => None,
    }
}

/// `AlgorithmIdentifier` of a key on a curve: `id-ecPublicKey`, then the curve.
const P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
    0x01, 0x07,
];
const P384: &[u8] =
    &[0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// Wraps a key in the form of OpenSSL's `EC PRIVATE KEY` as PKCS#8: version 0, algorithm, the key as an octet string.
fn pkcs8_of_sec1(sec1: &[u8], algorithm: &[u8]) -> Option<Vec<u8>> {
    let element = |tag: u8, content: &[u8]| -> Option<Vec<u8>> {
        let length = u16::try_from(content.len()).ok()?;
        let mut der = vec![tag];
        match length {
            0..0x80 => der.push(length as u8),
            0x80..0x100 => der.extend([0x81, length as u8]),
            _ => der.extend([0x82, (length >> 8) as u8, length as u8]),
        }
        der.extend_from_slice(content);
        Some(der)
    };
    let content = [&[0x02, 0x01, 0x00][..], algorithm, &element(0x04, sec1)?].concat();
    element(0x30, &content)
}

#[cfg(test)]
mod tests;
