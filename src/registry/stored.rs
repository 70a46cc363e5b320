/// A value that is stored under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) value: String,
    /// Revisions.
    pub(super) created: i64,
    pub(super) modified: i64,
}
