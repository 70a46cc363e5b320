use bytes::Bytes;

use super::auth::{names, no_arguments};
use super::failure::Failure;
use super::flags::{Parsed, Word};
use super::session::{Session, show};
use crate::pb::authpb::Permission;
use crate::pb::authpb::permission::Type;
use crate::pb::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest, AuthRoleGrantPermissionRequest, AuthRoleListRequest,
    AuthRoleRevokePermissionRequest,
};
use crate::types::KeyRange;

/// A range end that stands for no end, and the lowest key.
const ZERO: &[u8] = b"\0";

pub(super) async fn add(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [name] = names(&parsed.args, "role add command requires role name as its argument")?;
    let done = format!("Role {name} created");
    let request = AuthRoleAddRequest { name };
    let answer = session.patient(async |client| client.auth().role_add(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

pub(super) async fn delete(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [role] = names(&parsed.args, "role delete command requires role name as its argument")?;
    let done = format!("Role {role} deleted");
    let request = AuthRoleDeleteRequest { role };
    let answer = session.patient(async |client| client.auth().role_delete(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

pub(super) async fn get(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [role] = names(&parsed.args, "role get command requires role name as its argument")?;
    let request = AuthRoleGetRequest { role: role.clone() };
    let answer = session.patient(async |client| client.auth().role_get(request).await).await?;
    show(session.printer.role(&role, &answer)?)
}

pub(super) async fn list(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    no_arguments(parsed, "role list command requires no arguments")?;
    let answer = session.patient(async |client| client.auth().role_list(AuthRoleListRequest {}).await).await?;
    show(session.printer.roles(&answer)?)
}

pub(super) async fn grant_permission(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [name, kind, span @ ..] = parsed.args.as_slice() else {
        return Err(Failure::args(GRANT_USAGE));
    };
    if span.is_empty() {
        return Err(Failure::args(GRANT_USAGE));
    }
    let (name, kind) = (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(kind));
    let perm_type = Type::from_str_name(&kind.to_uppercase())
        .ok_or_else(|| Failure::args(format!("invalid permission type: {kind}")))?;
    let (key, range_end) = self::span(parsed, span)?;
    let done = format!("Role {name} updated");
    let perm = Some(Permission { perm_type: perm_type as i32, key, range_end });
    let request = AuthRoleGrantPermissionRequest { name, perm };
    let answer = session.patient(async |client| client.auth().role_grant_permission(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

const GRANT_USAGE: &str = "role grant command requires role name, permission type, and key [endkey] as its argument";

pub(super) async fn revoke_permission(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let text = "role revoke-permission command requires role name and key [endkey] as its argument";
    let [role, span @ ..] = parsed.args.as_slice() else { return Err(Failure::args(text)) };
    let Some(written) = span.first() else { return Err(Failure::args(text)) };
    let (key, range_end) = self::span(parsed, span)?;
    let (role, written) = (String::from_utf8_lossy(role).into_owned(), String::from_utf8_lossy(written));
    let done = match range_end.as_ref() {
        b"" => format!("Permission of key {written} is revoked from role {role}"),
        ZERO => format!("Permission of range [{written}, <open ended> is revoked from role {role}"),
        end => {
            let end = String::from_utf8_lossy(end);
            format!("Permission of range [{written}, {end}) is revoked from role {role}")
        }
    };
    let request = AuthRoleRevokePermissionRequest { role, key, range_end };
    let answer = session.patient(async |client| client.auth().role_revoke_permission(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

/// The key and range end of a permission. An empty key with `--prefix` or `--from-key` covers every key.
fn span(parsed: &Parsed, words: &[Word]) -> Result<(Bytes, Bytes), Failure> {
    let (prefix, from_key) = (parsed.bool("prefix"), parsed.bool("from-key"));
    let both = || Failure::args("--from-key and --prefix flags are mutually exclusive");
    let key = words.first().map(|word| Bytes::copy_from_slice(word)).unwrap_or_default();
    let zero = || Bytes::from_static(ZERO);
    if key.is_empty() {
        return match (prefix, from_key) {
            (true, true) => Err(both()),
            (false, false) => Ok((zero(), Bytes::new())),
            _ => Ok((zero(), zero())),
        };
    }
    match words.get(1) {
        Some(_) if prefix => Err(Failure::args("unexpected endkey argument with --prefix flag")),
        Some(_) if from_key => Err(Failure::args("unexpected endkey argument with --from-key flag")),
        Some(end) => Ok((key, Bytes::copy_from_slice(end))),
        None => match (prefix, from_key) {
            (true, true) => Err(both()),
            (true, false) => Ok(KeyRange::prefix(key).to_wire()),
            (false, true) => Ok((key, zero())),
            (false, false) => Ok((key, Bytes::new())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::{self, Flag};
    use super::super::tree::{Body, ROOT};
    use super::*;

    fn spanned(words: &[&str]) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let group = ROOT.iter().find(|command| command.name == "role").unwrap();
        let Body::Group(children) = group.body else { panic!("a group") };
        let grant = children.iter().find(|command| command.name == "grant-permission").unwrap();
        let words: Vec<Word> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let parsed = flags::parse(&grant.flags.iter().collect::<Vec<&Flag>>(), &words).unwrap();
        span(&parsed, &parsed.args).map(|(key, end)| (key.to_vec(), end.to_vec()))
    }

    #[test]
    fn a_permission_covers_what_etcdctl_grants() {
        for (words, key, end) in [
            (&["a"][..], &b"a"[..], &b""[..]),
            (&["a", "c"], b"a", b"c"),
            (&["a", "--prefix"], b"a", b"b"),
            (&["a", "--from-key"], b"a", b"\0"),
            (&[""], b"\0", b""),
            (&["", "--prefix"], b"\0", b"\0"),
            (&["", "--from-key"], b"\0", b"\0"),
        ] {
            assert_eq!(spanned(words).unwrap(), (key.to_vec(), end.to_vec()), "{words:?}");
        }
        for words in [&["a", "--prefix", "--from-key"][..], &["", "--prefix", "--from-key"], &["a", "b", "--prefix"]] {
            assert_eq!(spanned(words).unwrap_err().code, 128, "{words:?}");
        }
    }
}
