use std::sync::Arc;

use parking_lot::Mutex;

use crate::client::{Pool, PoolConfig, UpstreamCluster, WeakPool};
use crate::discovery::{Discovery, dialled};
use crate::net::{ClientTls, Endpoint};
use crate::shutdown::Tasks;

/// The pools of all serving threads and hubs of a proxy: they follow one set of endpoints. Cheap to clone.
#[derive(Clone, Debug)]
pub struct UpstreamPools {
    config: PoolConfig,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    endpoints: Vec<Endpoint>,
    /// Those in use.
    pools: Vec<WeakPool>,
}

impl UpstreamPools {
    /// No pool yet; `config` names the first endpoints.
    pub fn new(config: PoolConfig) -> Self {
        let state = State { endpoints: config.endpoints.clone(), pools: Vec::new() };
        Self { config, state: Arc::new(Mutex::new(state)) }
    }

    /// Opens a pool to the current endpoints, on the current runtime.
    pub fn open(&self, tasks: &Tasks) -> Pool {
        self.open_with(self.config.tls.clone(), tasks)
    }

    /// The same with another certificate to show.
    pub fn open_with(&self, tls: Option<ClientTls>, tasks: &Tasks) -> Pool {
        let mut state = self.state.lock();
        let config = PoolConfig { endpoints: state.endpoints.clone(), tls, ..self.config.clone() };
        let pool = Pool::new(config, tasks);
        state.pools.retain(|pool| pool.upgrade().is_some());
        state.pools.push(pool.downgrade());
        pool
    }

    /// Has all pools use the endpoints of `source`, until `tasks` stop or the set cannot change any more.
    pub fn follow(&self, source: &dyn Discovery, cluster: UpstreamCluster, tasks: &Tasks) {
        let (mut sets, this, stop) = (source.endpoints(), self.clone(), tasks.stop_signal());
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = sets.changed() => if changed.is_err() { return },
                }
                let endpoints = dialled(&sets.borrow_and_update());
                cluster.set_endpoints(&endpoints);
                this.set_endpoints(endpoints);
            }
        });
    }

    fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        let mut state = self.state.lock();
        state.pools.iter().filter_map(WeakPool::upgrade).for_each(|pool| pool.set_endpoints(&endpoints));
        state.endpoints = endpoints;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{ListedEndpoint, StaticList, current_endpoints};
    use crate::net::HostPort;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn open_pools_and_later_ones_follow_the_source() {
        let address = |text: &str| text.parse::<HostPort>().unwrap();
        let (list, tasks) = (StaticList::new([address("127.0.0.1:1")]), Tasks::new());
        let first = current_endpoints(&list);
        let pools = UpstreamPools::new(PoolConfig::new(first.clone()));
        let before = pools.open(&tasks);
        pools.follow(&list, UpstreamCluster::new(&first, &Metrics::new()), &tasks);
        list.replace([ListedEndpoint::new(address("127.0.0.1:2"))].into());
        while before.endpoints() == first {
            tokio::task::yield_now().await;
        }
        let now = current_endpoints(&list);
        assert_eq!((before.endpoints(), pools.open(&tasks).endpoints()), (now.clone(), now));
        // Not kept by those that are gone.
        (0..10).for_each(|_| drop(pools.open(&tasks)));
        assert!(pools.state.lock().pools.len() <= 2);
        tasks.stop();
    }
}
