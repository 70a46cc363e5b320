use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{CertificateError, Error, RootCertStore};
use x509_parser::prelude::{ASN1Time, ExtendedKeyUsage, FromDer, X509Certificate};

/// Accepts a certificate that is itself among the trusted ones, as Go does: those that `openssl req -x509` makes are
/// certificates of an authority, and are often used by the side that shows them and as what the other side trusts.
///
/// The library refuses any certificate of an authority here; `refusal` is its error, and comes back unless this
/// certificate is trusted, is valid `now` and may be used as `usage` says. It is trusted when a certificate with its
/// name and its key is.
///
/// # Errors
/// Why the certificate is not accepted.
pub(super) fn verify_self_trusted(
    certificate: &CertificateDer<'_>,
    trusted: &RootCertStore,
    now: UnixTime,
    usage: fn(&ExtendedKeyUsage<'_>) -> bool,
    refusal: Error,
) -> Result<(), Error> {
    let mut own = RootCertStore::empty();
    if own.add(certificate.clone().into_owned()).is_err() || !own.roots.iter().all(|own| trusted.roots.contains(own)) {
        return Err(refusal);
    }
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    if !now.is_some_and(|now| parsed.validity().is_valid_at(now)) {
        return Err(CertificateError::Expired.into());
    }
    let usages = parsed.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    match usages.is_none_or(|usages| usages.value.any || usage(usages.value)) {
        true => Ok(()),
        false => Err(CertificateError::InvalidPurpose.into()),
    }
}

/// The same for the certificate of a server, which has to be for the name it was dialled by.
///
/// # Errors
/// Why the certificate is not accepted.
pub(super) fn verify_self_trusted_server(
    certificate: &CertificateDer<'_>,
    trusted: &RootCertStore,
    name: &ServerName<'_>,
    now: UnixTime,
    refusal: Error,
) -> Result<(), Error> {
    verify_self_trusted(certificate, trusted, now, |usages| usages.server_auth, refusal)?;
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
}
