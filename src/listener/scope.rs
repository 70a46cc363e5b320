use std::sync::Arc;

use http::Extensions;
use parking_lot::Mutex;

/// What a service keeps for as long as one connection lives; in the extensions of each of its requests. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ConnectionScope(Arc<Mutex<Extensions>>);

impl ConnectionScope {
    /// The value of this type, made when it is first asked for.
    pub fn value<T: Clone + Default + Send + Sync + 'static>(&self) -> T {
        self.0.lock().get_or_insert_default::<T>().clone()
    }
}
