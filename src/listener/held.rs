use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicUsize;

use tonic::Status;

use super::connection_info::ConnectionInfo;

/// What the reader of one body holds of it, counted as unfinished until it is dropped.
#[derive(Debug, Default)]
pub struct HeldBytes {
    connection: Option<Arc<ConnectionInfo>>,
    bytes: usize,
}

impl HeldBytes {
    /// Holds nothing yet. Without a connection, nothing is counted.
    pub fn new(connection: Option<Arc<ConnectionInfo>>) -> Self {
        Self { connection, bytes: 0 }
    }

    /// Holds this much from now on.
    ///
    /// # Errors
    /// When the connection, or all of them, hold too much.
    pub fn set(&mut self, bytes: usize) -> Result<(), Status> {
        let Some(connection) = &self.connection else { return Ok(()) };
        connection.unfinished.give_back(std::mem::take(&mut self.bytes));
        connection.unfinished.take(bytes)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.unfinished.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
impl HeldBytes {
    /// Holds nothing yet, on a connection of its own; and what all connections hold.
    pub(crate) fn of_test_connection() -> (Self, Arc<AtomicUsize>) {
        let all = Arc::new(AtomicUsize::new(0));
        (Self::new(Some(ConnectionInfo::of_test(all.clone(), Arc::default()))), all)
    }
}
