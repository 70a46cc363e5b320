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
    /// Connections to it come back to this gateway.
    Loop,
}

impl Cause {
    pub(super) const ALL: [Self; 6] =
        [Self::Refused, Self::Timeout, Self::LookUp, Self::OtherError, Self::Check, Self::Loop];

    /// Its metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::LookUp => "look-up",
            Self::OtherError => "error",
            Self::Check => "check",
            Self::Loop => "loop",
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
