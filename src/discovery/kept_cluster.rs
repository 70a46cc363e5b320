use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;

use serde::{Deserialize, Serialize};

use crate::config::KeptClusterConfig;

/// What a surplus member knows of the cluster that it serves as a proxy, in a file of its data directory: for a start at which
/// the registry has forgotten the token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct KeptCluster {
    /// As its members name it; others are not listened to.
    pub cluster_id: String,
    /// [`MemberRegistry::fingerprint`](crate::config::MemberRegistry::fingerprint) of where it was found.
    registry: String,
    /// Of its members when it was written.
    pub peer_urls: Vec<String>,
}

impl KeptCluster {
    pub(super) fn new(config: &KeptClusterConfig, cluster_id: String, peer_urls: Vec<String>) -> Self {
        Self { cluster_id, registry: config.registry.clone(), peer_urls }
    }

    /// None where nothing was kept, or for another registry or token.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(config: &KeptClusterConfig) -> io::Result<Option<Self>> {
        let bytes = match fs::read(&config.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let kept: Self = serde_json::from_slice(&bytes)?;
        Ok(Some(kept).filter(|kept| kept.registry == config.registry))
    }

    /// Replaces the file.
    pub(super) fn write(&self, config: &KeptClusterConfig) -> io::Result<()> {
        let folder = config.file.parent().ok_or(io::ErrorKind::InvalidInput)?;
        // As a member makes its data directory.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let new = config.file.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&new, &config.file)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_of_one_registry() {
        let folder = tempfile::tempdir().unwrap();
        let config = |registry: &str| KeptClusterConfig {
            file: folder.path().join("proxy/cluster"),
            registry: registry.to_owned(),
        };
        assert_eq!(KeptCluster::read(&config("a")).unwrap(), None);
        for urls in [&["http://a:1"][..], &["http://a:1", "http://b:1"]] {
            let kept = KeptCluster::new(&config("a"), "7".to_owned(), urls.iter().map(ToString::to_string).collect());
            kept.write(&config("a")).unwrap();
            assert_eq!(KeptCluster::read(&config("a")).unwrap(), Some(kept));
        }
        assert_eq!(KeptCluster::read(&config("b")).unwrap(), None);
        fs::write(folder.path().join("proxy/cluster"), "{").unwrap();
        assert!(KeptCluster::read(&config("a")).is_err());
    }
}
