//! Rows that load members.

use std::path::Path;
use std::process::{Command, Stdio};

use super::judge::{OURS, PEER};
use super::load::{measure, words};
use super::programs::{Programs, Running, command, port};
use super::side::{Side, Sides};

/// A user that may read and write everything.
const USER_FLAG: &str = "--user=load:secret";

/// One member, or one of several.
#[derive(Debug)]
pub(in crate::bench) struct Member {
    pub(in crate::bench) running: Running,
    pub(in crate::bench) endpoint: String,
    is_secure: bool,
}

/// What a member is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Security {
    Off,
    /// TLS with a certificate that it makes itself, and users.
    TlsAndUsers,
}

impl Member {
    /// Starts a member that is a cluster.
    pub(in crate::bench) fn start(programs: &Programs, program: &Path, security: Security) -> Result<Self, String> {
        let mut cluster = Self::cluster_with(programs, program, 1, security)?;
        let member = cluster.remove(0);
        if member.is_secure {
            member.enable_auth(programs)?;
        }
        Ok(member)
    }

    /// Starts so many members.
    pub(in crate::bench) fn cluster(programs: &Programs, program: &Path, count: usize) -> Result<Vec<Self>, String> {
        Self::cluster_with(programs, program, count, Security::Off)
    }

    fn cluster_with(
        programs: &Programs,
        program: &Path,
        count: usize,
        security: Security,
    ) -> Result<Vec<Self>, String> {
        let is_secure = security == Security::TlsAndUsers;
        let scheme = if is_secure { "https" } else { "http" };
        let urls = (0..count)
            .map(|_| Ok((format!("{scheme}://127.0.0.1:{}", port()?), format!("http://127.0.0.1:{}", port()?))))
            .collect::<Result<Vec<_>, String>>()?;
        let all = urls.iter().enumerate().map(|(number, (_, peer))| format!("m{number}={peer}"));
        let all = all.collect::<Vec<_>>().join(",");
        let mut members = Vec::new();
        for (number, (client, peer)) in urls.into_iter().enumerate() {
            let folder = programs.folder("member")?;
            let mut line = words(&format!(
                "--name=m{number} --data-dir=data --listen-client-urls={client} --advertise-client-urls={client} \
                 --listen-peer-urls={peer} --initial-advertise-peer-urls={peer} --initial-cluster={all}"
            ));
            // Logins are no part of what is measured.
            line.push("--bcrypt-cost=4".into());
            if is_secure {
                line.push("--auto-tls".into());
            }
            members.push(Self { running: Running::start(program, &line, &folder)?, endpoint: client, is_secure });
        }
        for member in &mut members {
            let mut health = member.ctl_command(programs, &words("endpoint health"));
            member.running.until(|| succeeds(&mut health))?;
        }
        Ok(members)
    }

    fn enable_auth(&self, programs: &Programs) -> Result<(), String> {
        self.ctl(programs, &words("role add load"))?;
        let mut all_keys = words("role grant-permission load --from-key readwrite");
        all_keys.push(String::new());
        self.ctl(programs, &all_keys)?;
        self.add_user(programs, "load:secret", "load")?;
        self.add_user(programs, "root:secret", "root")?;
        self.ctl(programs, &words("auth enable"))
    }

    /// Adds the user root and so many that may read keys under `a/`, and turns authentication on.
    pub(in crate::bench) fn add_users(&self, programs: &Programs, count: usize) -> Result<(), String> {
        self.ctl(programs, &words("role add reader"))?;
        self.ctl(programs, &words("role grant-permission reader --prefix read a/"))?;
        for (name, role) in (0..count).map(|user| (format!("u{user}:p"), "reader")) {
            self.add_user(programs, &name, role)?;
        }
        self.add_user(programs, "root:secret", "root")?;
        self.ctl(programs, &words("auth enable"))
    }

    fn add_user(&self, programs: &Programs, with_password: &str, role: &str) -> Result<(), String> {
        let name = with_password.split(':').next().unwrap_or_default();
        self.ctl(programs, &words(&format!("user add {with_password}")))?;
        self.ctl(programs, &words(&format!("user grant-role {name} {role}")))
    }

    /// A command of the client on it.
    fn ctl_command(&self, programs: &Programs, line: &[String]) -> Command {
        let mut all = words(&format!("ctl --endpoints={}", self.endpoint));
        if self.is_secure {
            all.push("--insecure-skip-tls-verify".into());
        }
        all.extend_from_slice(line);
        command(&programs.ours, &all)
    }

    fn ctl(&self, programs: &Programs, line: &[String]) -> Result<(), String> {
        let output = self.ctl_command(programs, line).output();
        let output = output.map_err(|error| format!("ctl {line:?}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("ctl {line:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Stores a value of 256 bytes.
    pub(in crate::bench) fn put(&self, programs: &Programs, key: &str) -> Result<(), String> {
        let mut line = words(if self.is_secure { USER_FLAG } else { "" });
        line.extend(words(&format!("put {key} {}", "v".repeat(256))));
        self.ctl(programs, &line)
    }

    /// The words of a load on it.
    pub(in crate::bench) fn words(&self, line: &str) -> Vec<String> {
        load_words(std::slice::from_ref(self), line)
    }
}

/// The words of a load on members; what all of them cost counts.
fn load_words(members: &[Member], line: &str) -> Vec<String> {
    let endpoints: Vec<&str> = members.iter().map(|member| member.endpoint.as_str()).collect();
    let mut all = words(line);
    all.push("--json".into());
    all.push(format!("--endpoints={}", endpoints.join(",")));
    all.extend(members.iter().map(|member| format!("--server-pid={}", member.running.pid())));
    if members.iter().any(|member| member.is_secure) {
        all.push("--insecure-skip-tls-verify".into());
        all.push(USER_FLAG.into());
    }
    all
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Both programs by the name of their side.
pub(in crate::bench) fn both(programs: &Programs) -> [(&'static str, &Path); 2] {
    [(OURS, &programs.ours), (PEER, &programs.peer)]
}

/// A load on one member of each program, with the key `foo` in it.
pub(in crate::bench) fn one_member(programs: &Programs, line: &str, security: Security) -> Result<Sides, String> {
    let side = |(name, program)| {
        let member = Member::start(programs, program, security)?;
        member.put(programs, "foo")?;
        Ok(Side::of_load(name, programs, line, move |line| member.words(line)))
    };
    Ok(both(programs).into_iter().map(side).collect::<Result<Vec<_>, String>>()?.into())
}

/// A load with an end of its own on a new member in each round: for memory, which a second run finds in use already.
pub(in crate::bench) fn new_member(programs: &Programs, line: &str) -> Result<Sides, String> {
    let side = |(name, program): (&'static str, &Path)| {
        let (programs, line, program) = (programs.clone(), line.to_owned(), program.to_owned());
        Side::new(name, move |_| {
            let member = Member::start(&programs, &program, Security::Off)?;
            measure(&programs, &member.words(&line))
        })
    };
    Ok(both(programs).into_iter().map(side).collect::<Vec<_>>().into())
}

/// A load on the leader of three members.
pub(in crate::bench) fn three_members(programs: &Programs, line: &str) -> Result<Sides, String> {
    let side = |(name, program)| {
        let members = Member::cluster(programs, program, 3)?;
        members[0].put(programs, "foo")?;
        let line = format!("{line} --target-leader");
        Ok(Side::of_load(name, programs, &line, move |line| load_words(&members, line)))
    };
    Ok(both(programs).into_iter().map(side).collect::<Result<Vec<_>, String>>()?.into())
}
