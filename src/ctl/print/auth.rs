use super::super::failure::Failure;
use super::printer::{Format, Printer};
use super::{fields, json, proto};
use crate::pb::authpb::Permission;
use crate::pb::authpb::permission::Type;
use crate::pb::etcdserverpb::{
    AuthRoleGetResponse, AuthRoleListResponse, AuthStatusResponse, AuthUserGetResponse, AuthUserListResponse,
    DowngradeResponse, ResponseHeader,
};

type Text = Result<Vec<u8>, Failure>;

/// The role of the user root, which permits everything without a permission of its own.
const ROOT: &str = "root";
/// A range end that stands for no end.
const OPEN: &[u8] = b"\0";

impl Printer {
    /// An answer that says only that something is done: `done` in the simple format, the header in the others.
    pub(crate) fn done(&self, done: &str, header: Option<&ResponseHeader>, answer: &impl prost::Message) -> Text {
        match self.format {
            Format::Simple => Ok(format!("{done}\n").into_bytes()),
            Format::Fields => Ok(fields::header_only(self.hex, header)),
            Format::Json => json::line(json::header_only(header)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn user(&self, name: &str, answer: &AuthUserGetResponse) -> Text {
        match self.format {
            Format::Simple => {
                let roles: String = answer.roles.iter().map(|role| format!(" {role}")).collect();
                Ok(format!("User: {name}\nRoles:{roles}\n").into_bytes())
            }
            Format::Json => json::line(json::names(answer.header.as_ref(), "roles", &answer.roles)),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    pub(crate) fn users(&self, answer: &AuthUserListResponse) -> Text {
        match self.format {
            Format::Simple => Ok(lines(&answer.users)),
            Format::Json => json::line(json::names(answer.header.as_ref(), "users", &answer.users)),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    pub(crate) fn role(&self, name: &str, answer: &AuthRoleGetResponse) -> Text {
        match self.format {
            Format::Simple => Ok(role(name, answer)),
            Format::Fields => Ok(fields::permissions(self.hex, answer)),
            Format::Json => json::line(json::permissions(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn roles(&self, answer: &AuthRoleListResponse) -> Text {
        match self.format {
            Format::Simple => Ok(lines(&answer.roles)),
            Format::Fields => Ok(fields::roles(self.hex, answer)),
            Format::Json => json::line(json::names(answer.header.as_ref(), "roles", &answer.roles)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn auth_status(&self, answer: &AuthStatusResponse) -> Text {
        match self.format {
            Format::Simple => {
                let (on, revision) = (answer.enabled, answer.auth_revision);
                Ok(format!("Authentication Status: {on}\nAuthRevision: {revision}\n").into_bytes())
            }
            Format::Json => json::line(json::auth_status(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    /// `what` is validate, enable or cancel.
    pub(crate) fn downgrade(&self, what: &str, answer: &DowngradeResponse) -> Text {
        match self.format {
            Format::Simple => {
                Ok(format!("Downgrade {what} success, cluster version {}\n", answer.version).into_bytes())
            }
            Format::Json => json::line(json::downgrade(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }
}

fn lines(names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| format!("{name}\n").into_bytes()).collect()
}

fn role(name: &str, answer: &AuthRoleGetResponse) -> Vec<u8> {
    let mut out = format!("Role {name}\n").into_bytes();
    for (title, kind) in [("KV Read:\n", Type::Read), ("KV Write:\n", Type::Write)] {
        out.extend_from_slice(title.as_bytes());
        if name == ROOT && answer.perm.is_empty() {
            out.extend_from_slice(b"\t[, <open ended>\n");
        }
        for permission in &answer.perm {
            if [kind, Type::Readwrite].contains(&permission.perm_type()) {
                out.extend(range(permission));
            }
        }
    }
    out
}

fn range(permission: &Permission) -> Vec<u8> {
    let (key, end): (&[u8], &[u8]) = (&permission.key, &permission.range_end);
    let mut line = match end {
        b"" => [b"\t", key].concat(),
        OPEN => [b"\t[", key, b", <open ended>"].concat(),
        end => [b"\t[", key, b", ", end, b")"].concat(),
    };
    if !end.is_empty() && !key.is_empty() && end == prefix_end(key) {
        line.extend([b" (prefix ", key, b")"].concat());
    }
    line.push(b'\n');
    line
}

/// The first key after all that start with `key`.
fn prefix_end(key: &[u8]) -> Vec<u8> {
    match key.iter().rposition(|&byte| byte < 0xff) {
        Some(last) => [&key[..last], &[key[last] + 1]].concat(),
        None => OPEN.to_vec(),
    }
}
