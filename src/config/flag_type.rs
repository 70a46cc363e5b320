use std::any::TypeId;

use clap::Arg;

use super::golang::GoDuration;

/// Types of flags that a file and Go's messages distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagType {
    Bool,
    Integer,
    Duration,
    Text,
}

impl FlagType {
    pub fn of(arg: &Arg) -> Self {
        let id = arg.get_value_parser().type_id();
        let integers = [TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<i64>(), TypeId::of::<usize>()];
        match () {
            () if id == TypeId::of::<bool>() => Self::Bool,
            () if id == TypeId::of::<GoDuration>() => Self::Duration,
            () if integers.iter().any(|integer| id == *integer) => Self::Integer,
            () => Self::Text,
        }
    }
}
