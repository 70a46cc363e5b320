use std::any::TypeId;

use clap::Arg;

use super::golang::GoDuration;

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
