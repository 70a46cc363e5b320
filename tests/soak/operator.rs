use std::sync::Arc;

use watershed::pb::authpb::UserAddOptions;
use watershed::pb::etcdserverpb::{AuthUserAddRequest, AuthUserDeleteRequest, DefragmentRequest};

use super::record::Record;
use crate::harness::{Certificates, Cluster, until};

/// What is done to a cluster from outside. Members have their numbers; the last one is never ended.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// SIGTERM, and started again.
    Restart(usize),
    /// SIGKILL, and started again.
    Kill(usize),
    Defragment(usize),
    /// Every certificate and key is replaced.
    Renew,
    /// A user is added and deleted: the revision of users and roles goes on.
    Users,
}

/// In this order, over and over.
const ACTS: [Act; 10] = [
    Act::Restart(0),
    Act::Renew,
    Act::Defragment(2),
    Act::Kill(1),
    Act::Defragment(0),
    Act::Users,
    Act::Kill(0),
    Act::Renew,
    Act::Restart(1),
    Act::Defragment(1),
];

pub struct Operator {
    certificates: Arc<Certificates>,
    done: usize,
}

impl Operator {
    pub fn new(certificates: &Arc<Certificates>) -> Self {
        Self { certificates: certificates.clone(), done: 0 }
    }

    pub fn has_done_all(&self) -> bool {
        self.done >= ACTS.len()
    }

    /// The next act; what it was.
    pub async fn next(&mut self, cluster: &mut Cluster, record: &Record) -> String {
        let act = ACTS[self.done % ACTS.len()];
        self.done += 1;
        match act {
            Act::Restart(number) => {
                cluster.terminate(number).await;
                cluster.restart(number).await;
            }
            Act::Kill(number) => {
                cluster.kill(number);
                cluster.restart(number).await;
            }
            Act::Defragment(number) => {
                let asked = cluster.member(number).maintenance().defragment(DefragmentRequest {}).await;
                record.must(asked.is_ok(), || format!("defragmentation of {number}: {asked:?}"));
            }
            Act::Renew => self.certificates.renew(),
            Act::Users => {
                let client = cluster.client();
                let options = Some(UserAddOptions { no_password: true });
                let add = AuthUserAddRequest { name: "passing".into(), options, ..Default::default() };
                let delete = AuthUserDeleteRequest { name: "passing".into() };
                until("a user", || {
                    let (mut auth, add) = (client.auth(), add.clone());
                    async move {
                        let answer = auth.user_add(add).await;
                        answer.map_or_else(|status| status.message().contains("already exists"), |_| true).then_some(())
                    }
                })
                .await;
                until("no user", || {
                    let (mut auth, delete) = (client.auth(), delete.clone());
                    async move {
                        let answer = auth.user_delete(delete).await;
                        answer.map_or_else(|status| status.message().contains("not found"), |_| true).then_some(())
                    }
                })
                .await;
            }
        }
        format!("{act:?}")
    }
}
