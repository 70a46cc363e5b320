/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Simple,
    Fields,
    Json,
    Table,
    Protobuf,
}

impl Format {
    pub(crate) fn read(text: &str) -> Option<Self> {
        Some(match text {
            "simple" => Self::Simple,
            "fields" => Self::Fields,
            "json" => Self::Json,
            "table" => Self::Table,
            "protobuf" => Self::Protobuf,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Fields => "fields",
            Self::Json => "json",
            Self::Table => "table",
            Self::Protobuf => "protobuf",
        }
    }
}

/// How answers are to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    pub(crate) hex: bool,
    /// Leave keys out of the simple format.
    pub(crate) value_only: bool,
}

impl Printer {
    pub(crate) fn new(format: Format, hex: bool) -> Self {
        Self { format, hex, value_only: false }
    }
}
