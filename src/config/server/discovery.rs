use clap::Args;

use super::super::discovery::SrvConfig;
use super::super::error::ConfigError;
use super::super::member_registry::{MemberRegistry, RawMemberRegistry};

/// etcd's text.
const SEVERAL: &str = "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
                       \"discovery\", \"discovery-endpoints\" or \"discovery-srv\"";

/// Flags by which a member without data finds the others; all of etcd but `--discovery-dns`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Discovery")]
pub struct RawDiscovery {
    /// Domain whose SRV records name the members of a cluster that begins, in place of --initial-cluster.
    #[arg(long, default_value = "", value_name = "DOMAIN")]
    pub discovery_srv: String,
    /// Suffix of the service in the names of those records.
    #[arg(long, default_value = "", value_name = "NAME")]
    pub discovery_srv_name: String,
    /// DNS server to ask for them, as ADDRESS or ADDRESS:PORT; those of the system unless given. Not a flag of etcd.
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    pub discovery_dns: String,
    /// Where members register themselves.
    #[command(flatten)]
    pub registry: RawMemberRegistry,
    /// What a member does that finds a complete cluster without it: exit, or proxy to serve as a gRPC proxy in front of that.
    #[arg(long, default_value = "exit", value_name = "exit|proxy")]
    pub discovery_fallback: String,
}

/// Where a member without data finds the members of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitialDiscovery {
    /// In SRV records.
    Srv(SrvConfig),
    /// Where they register.
    Registry(Box<MemberRegistry>),
}

/// What a member does that finds a complete cluster without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Fallback {
    Exit,
    Proxy,
}

impl RawDiscovery {
    /// None where `--initial-cluster` counts, of which `has_list` says whether it was given.
    pub(super) fn checked(&self, has_list: bool) -> Result<Option<InitialDiscovery>, ConfigError> {
        let (raw, registry) = (self, &self.registry);
        let given = [&raw.discovery_srv, &registry.discovery, &registry.discovery_endpoints];
        if given.into_iter().filter(|text| !text.is_empty()).count() + usize::from(has_list) > 1 {
            return Err(ConfigError::Other(SEVERAL.to_owned()));
        }
        if let Some(registry) = registry.checked()? {
            return Ok(Some(InitialDiscovery::Registry(Box::new(registry))));
        }
        let srv = SrvConfig::from_flags(&raw.discovery_srv, &raw.discovery_srv_name, false, &raw.discovery_dns);
        let srv = srv.map_err(|(flag, reason)| ConfigError::Value { flag, reason })?;
        Ok(srv.map(InitialDiscovery::Srv))
    }

    pub(super) fn fallback(&self) -> Result<Fallback, ConfigError> {
        match self.discovery_fallback.as_str() {
            "exit" => Ok(Fallback::Exit),
            "proxy" => Ok(Fallback::Proxy),
            other => {
                let reason = format!("{other:?} is neither exit nor proxy");
                Err(ConfigError::Value { flag: "discovery-fallback", reason })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        discovery: RawDiscovery,
    }

    fn flags(line: &str) -> RawDiscovery {
        Flags::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).expect("readable").discovery
    }

    fn checked(line: &str, has_list: bool) -> Result<Option<InitialDiscovery>, String> {
        flags(line).checked(has_list).map_err(|error| error.to_string())
    }

    const TOKEN: &str = "--discovery-token=t --discovery-endpoints=http://a:1,b:2";
    const URL: &str = "--discovery=http://d.example/t";

    #[test]
    fn one_way_to_find_members_is_chosen() {
        assert_eq!(checked("", true), Ok(None));
        assert!(matches!(checked("--discovery-srv=example.com", false), Ok(Some(InitialDiscovery::Srv(_)))));
        for registry in [TOKEN, URL] {
            assert!(matches!(checked(registry, false), Ok(Some(InitialDiscovery::Registry(_)))));
        }
        let both = [format!("{TOKEN} --discovery-srv=a"), format!("{TOKEN} {URL}")];
        let cases = [(TOKEN, true), (URL, true), ("--discovery-srv=a", true), (&both[0], false), (&both[1], false)];
        for (line, has_list) in cases {
            assert!(checked(line, has_list).unwrap_err().starts_with("multiple discovery or bootstrap flags are set."));
        }
    }

    #[test]
    fn a_surplus_member_exits_unless_told() {
        assert_eq!(flags("").fallback(), Ok(Fallback::Exit));
        assert_eq!(flags("--discovery-fallback=proxy").fallback(), Ok(Fallback::Proxy));
        let error = flags("--discovery-fallback=x").fallback().unwrap_err().to_string();
        assert_eq!(error, "--discovery-fallback: \"x\" is neither exit nor proxy");
    }
}
