use super::{Rule, Violation};

/// What a member holds once everything is quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberState {
    /// The member.
    pub member: u64,
    /// Revision it was asked at.
    pub revision: i64,
    /// Its compacted revision.
    pub compact_revision: i64,
    /// HashKV of it.
    pub hash: u32,
}

/// Compares the members.
///
/// # Errors
/// When two differ.
pub fn check_end_states(states: &[MemberState]) -> Result<(), Violation> {
    let facts = |state: &MemberState| (state.revision, state.compact_revision, state.hash);
    match states.windows(2).find(|pair| facts(&pair[0]) != facts(&pair[1])) {
        Some(pair) => Err(Violation::new(Rule::EndState, format!("{:?} and {:?}", pair[0], pair[1]))),
        None => Ok(()),
    }
}
