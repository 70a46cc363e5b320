use serde::{Deserialize, Serialize};

use crate::pb::etcdserverpb;
use crate::types::MemberId;

/// One member, in the JSON form in which it is stored and proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id, fixed when it was added.
    pub id: u64,
    /// Where other members reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    /// Whether it follows without a vote.
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    /// Its name; empty until it has started for the first time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it.
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

impl Member {
    /// Its id.
    pub fn member_id(&self) -> MemberId {
        MemberId(self.id)
    }

    /// Whether it has ever started: it gets its name by publishing it, or as one of the first members.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// The stored form.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers can be written as JSON")
    }

    /// The API's form.
    pub fn to_api(&self) -> etcdserverpb::Member {
        etcdserverpb::Member {
            id: self.id,
            name: self.name.clone(),
            peer_ur_ls: self.peer_urls.clone(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: self.is_learner,
        }
    }
}

/// Programs written in Go send an empty list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_default())
}
