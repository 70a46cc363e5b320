use std::any::TypeId;

use clap::Arg;

use super::golang::{GoDuration, parse_int, parse_uint};

/// Types of flags that a file and Go's messages distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagType {
    Bool,
    Integer(Sign),
    Duration,
    Text,
}

/// Whether an integer may be below zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Signed,
    Unsigned,
}

impl Sign {
    /// The function of Go's package `strconv` that reads such a number.
    pub fn parser(self) -> &'static str {
        match self {
            Self::Signed => "ParseInt",
            Self::Unsigned => "ParseUint",
        }
    }

    /// Reads such a number as Go's flags do: in base 0, which has `0x10`, `0o17`, `017`, `0b1` and `1_000`.
    pub fn read(self, text: &str) -> Result<i128, String> {
        match self {
            Self::Signed => parse_int(text, 0).map(i128::from),
            Self::Unsigned => parse_uint(text, 0).map(i128::from),
        }
    }
}

impl FlagType {
    pub fn of(arg: &Arg) -> Self {
        let id = arg.get_value_parser().type_id();
        let unsigned = [TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()];
        match () {
            () if id == TypeId::of::<bool>() => Self::Bool,
            () if id == TypeId::of::<GoDuration>() => Self::Duration,
            () if id == TypeId::of::<i64>() => Self::Integer(Sign::Signed),
            () if unsigned.iter().any(|integer| id == *integer) => Self::Integer(Sign::Unsigned),
            () => Self::Text,
        }
    }
}
