use std::io;

/// Why an endpoint is no longer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Refused,
    Timeout,
    LookUp,
    OtherError,
    /// It took connections, but a health check failed.
    Check,
}

impl Cause {
    pub(super) const ALL: [Self; 5] = [Self::Refused, Self::Timeout, Self::LookUp, Self::OtherError, Self::Check];

    /// Its metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::LookUp => "look-up",
            Self::OtherError => "error",
            Self::Check => "check",
        }
    }

    /// Why a connection was not made.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::NotFound => Self::LookUp,
            _ => Self::OtherError,
        }
    }
}
