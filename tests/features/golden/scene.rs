use std::path::PathBuf;

use watershed::client::Client;
use watershed::pb::etcdserverpb::StatusRequest;

use super::grpc;
use super::transcript::words;
use crate::harness::Deployment;

/// A member, its client, and the names of what differs from run to run.
pub struct Scene {
    pub ctl: PathBuf,
    pub endpoint: String,
    pub folder: PathBuf,
    pub client: Client,
    pub names: Vec<(String, String)>,
    leases: usize,
    members: usize,
    tokens: usize,
    ids: [u64; 2],
}

impl Scene {
    pub async fn new(deployment: &Deployment, ctl: PathBuf) -> Self {
        let status = deployment.client.maintenance().status(StatusRequest {}).await.expect("a status").into_inner();
        let header = status.header.expect("a header");
        let mut scene = Self {
            ctl,
            endpoint: deployment.endpoint.clone(),
            client: deployment.client.clone(),
            folder: deployment.folder.path().to_owned(),
            names: Vec::new(),
            leases: 0,
            members: 1,
            tokens: 0,
            ids: [header.cluster_id, header.member_id],
        };
        scene.name_id("cluster", header.cluster_id);
        scene.name_id("member1", header.member_id);
        scene.names.push((deployment.endpoint.clone(), "{endpoint}".to_owned()));
        scene.names.push((deployment.peer_url(), "{peer}".to_owned()));
        scene.names.push((scene.folder.display().to_string(), "{folder}".to_owned()));
        scene
    }

    fn name_id(&mut self, name: &str, id: u64) {
        self.names.push((id.to_string(), format!("{{{name}}}")));
        self.names.push((format!("{id:x}"), format!("{{{name}:x}}")));
    }

    /// The call with the real ids in place of names.
    pub fn real(&self, call: &str) -> String {
        self.names.iter().fold(call.to_owned(), |call, (real, name)| call.replace(name, real))
    }

    /// The answer to a call, as the transcript has it.
    pub async fn answer(&mut self, call: &str, input: &str) -> String {
        let real = self.real(call);
        let (lines, real) = match real.split_once(" lines of ") {
            Some((count, rest)) => (count.parse().ok(), rest.to_owned()),
            None => (None, real),
        };
        let raw = match real.strip_prefix("GRPC ") {
            Some(call) => grpc::call(&self.client, call, lines).await,
            None => self.ctl(&words(&real), &self.real(input), lines),
        };
        let answer = raw.shown(&self.ids, &self.names[4..6]);
        self.learn(&answer, call);
        let mut lines: Vec<String> = answer.lines().map(|line| self.normal(line, call)).collect();
        if call.starts_with("member list") && !call.contains("fields") {
            // In the order of ids, which are different each time.
            lines.sort();
        }
        lines.concat()
    }

    /// Gives names to the leases and members that an answer is the first to mention.
    fn learn(&mut self, answer: &str, call: &str) {
        for line in answer.lines() {
            let word = |before: &str, after: &str| {
                let rest = line.split_once(before)?.1;
                Some(rest.split_once(after)?.0.trim().to_owned())
            };
            let granted = word("|lease ", " granted with TTL(").filter(|_| !line.contains("remaining"));
            let lease = granted
                .and_then(|id| u64::from_str_radix(&id, 16).ok())
                .or_else(|| word("\"ID\":", ",\"TTL\"")?.trim_matches('"').parse().ok())
                .or_else(|| line.strip_prefix("|\"ID\" : ")?.parse().ok())
                // An id that the call itself has needs no name.
                .filter(|id| {
                    *id != 0
                        && !call.contains(&id.to_string())
                        && !self.names.iter().any(|(real, _)| *real == id.to_string())
                });
            if let Some(id) = lease {
                self.leases += 1;
                let name = format!("lease{}", self.leases);
                self.names.push((format!("{id:016x}"), format!("{{{name}}}")));
                self.names.push((id.to_string(), format!("{{{name}:d}}")));
            }
            let added = word("|Member ", " added ").and_then(|id| u64::from_str_radix(&id, 16).ok());
            let added = added.or_else(|| word("\"member\":{\"ID\":\"", "\"")?.parse().ok());
            if let Some(id) = added {
                self.members += 1;
                self.name_id(&format!("member{}", self.members), id);
            }
            if let Some(token) = word("\"token\":\"", "\"") {
                self.tokens += 1;
                self.names.push((token, format!("{{token{}}}", self.tokens)));
            }
        }
    }
}
