use super::failure::Failure;
use super::flags::{Parsed, Word};
use super::session::{Session, show};
use super::terminal;
use crate::api_error::ApiError;
use crate::pb::authpb::UserAddOptions;
use crate::pb::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleGetRequest, AuthStatusRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest,
};

const ROOT: &str = "root";

/// Refuses arguments where there can be none.
pub(super) fn no_arguments(parsed: &Parsed, text: &str) -> Result<(), Failure> {
    if parsed.args.is_empty() { Ok(()) } else { Err(Failure::args(text)) }
}

/// The arguments, when there are exactly `N`.
pub(super) fn names<const N: usize>(words: &[Word], text: &str) -> Result<[String; N], Failure> {
    let names: Vec<String> = words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    names.try_into().map_err(|_| Failure::args(text))
}

/// Turns authentication on. Where the user root lacks its role, it gets it first.
pub(super) async fn enable(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    no_arguments(parsed, "auth enable command does not accept any arguments")?;
    loop {
        match session.short(async |client| client.auth().auth_enable(AuthEnableRequest {}).await).await {
            Ok(_) => return show("Authentication Enabled\n"),
            Err(failure) if failure.text == ApiError::RootRoleNotExist.text() => {}
            Err(failure) => return Err(failure),
        }
        let role = AuthRoleAddRequest { name: ROOT.to_owned() };
        session.short(async |client| client.auth().role_add(role).await).await?;
        let grant = AuthUserGrantRoleRequest { user: ROOT.to_owned(), role: ROOT.to_owned() };
        session.short(async |client| client.auth().user_grant_role(grant).await).await?;
    }
}

pub(super) async fn disable(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    no_arguments(parsed, "auth disable command does not accept any arguments")?;
    session.short(async |client| client.auth().auth_disable(AuthDisableRequest {}).await).await?;
    show("Authentication Disabled\n")
}

pub(super) async fn status(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    no_arguments(parsed, "auth status command does not accept any arguments")?;
    let answer = session.short(async |client| client.auth().auth_status(AuthStatusRequest {}).await).await?;
    show(session.printer.auth_status(&answer)?)
}

/// What `user add` asks for.
fn new_user(parsed: &Parsed, ask: impl FnOnce(&str) -> Result<String, Failure>) -> Result<AuthUserAddRequest, Failure> {
    let [argument] = names(&parsed.args, "user add command requires user name as its argument")?;
    let given = parsed.text("new-user-password");
    let (name, password) = match argument.split_once(':') {
        _ if parsed.bool("no-password") => (argument, String::new()),
        _ if !given.is_empty() => (argument, given.to_owned()),
        Some(("", _)) => return Err(Failure::args("empty user name is not allowed")),
        Some((name, password)) => (name.to_owned(), password.to_owned()),
        None => {
            let password = ask(&argument)?;
            (argument, password)
        }
    };
    let options = Some(UserAddOptions { no_password: parsed.bool("no-password") });
    Ok(AuthUserAddRequest { name, password, options, ..Default::default() })
}

/// The password for `user`: asked for twice at the terminal, or the first word of standard input.
fn password(parsed: &Parsed, user: &str) -> Result<String, Failure> {
    if !parsed.bool("interactive") {
        let line = terminal::line()?;
        return Ok(line.split_whitespace().next().unwrap_or_default().to_owned());
    }
    let ask = |prompt: String| {
        terminal::secret(&prompt).map_err(|error| Failure::args(format!("failed to ask password: {error}")))
    };
    let first = ask(format!("Password of {user}: "))?;
    if first.is_empty() {
        return Err(Failure::args("empty password"));
    }
    if first != ask(format!("Type password of {user} again for confirmation: "))? {
        return Err(Failure::args("given passwords are different"));
    }
    Ok(first)
}

pub(super) async fn user_add(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let request = new_user(parsed, |name| password(parsed, name))?;
    let done = format!("User {} created", request.name);
    let answer = session.patient(async |client| client.auth().user_add(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

pub(super) async fn user_delete(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [name] = names(&parsed.args, "user delete command requires user name as its argument")?;
    let done = format!("User {name} deleted");
    let request = AuthUserDeleteRequest { name };
    let answer = session.patient(async |client| client.auth().user_delete(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

pub(super) async fn user_get(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [name] = names(&parsed.args, "user get command requires user name as its argument")?;
    let request = AuthUserGetRequest { name: name.clone() };
    let answer = session.patient(async |client| client.auth().user_get(request).await).await?;
    if !parsed.bool("detail") {
        return show(session.printer.user(&name, &answer)?);
    }
    show(format!("User: {name}\n"))?;
    for role in answer.roles {
        show("\n")?;
        let request = AuthRoleGetRequest { role: role.clone() };
        let answer = session.patient(async |client| client.auth().role_get(request).await).await?;
        show(session.printer.role(&role, &answer)?)?;
    }
    Ok(())
}

pub(super) async fn user_list(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    no_arguments(parsed, "user list command requires no arguments")?;
    let answer = session.patient(async |client| client.auth().user_list(AuthUserListRequest {}).await).await?;
    show(session.printer.users(&answer)?)
}

pub(super) async fn user_password(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [name] = names(&parsed.args, "user passwd command requires user name as its argument")?;
    let password = password(parsed, &name)?;
    let request = AuthUserChangePasswordRequest { name, password, ..Default::default() };
    let answer = session.patient(async |client| client.auth().user_change_password(request).await).await?;
    show(session.printer.done("Password updated", answer.header.as_ref(), &answer)?)
}

pub(super) async fn user_grant_role(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let text = "user grant command requires user name and role name as its argument";
    let [user, role] = names(&parsed.args, text)?;
    let done = format!("Role {role} is granted to user {user}");
    let request = AuthUserGrantRoleRequest { user, role };
    let answer = session.patient(async |client| client.auth().user_grant_role(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

pub(super) async fn user_revoke_role(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [name, role] = names(&parsed.args, "user revoke-role requires user name and role name as its argument")?;
    let done = format!("Role {role} is revoked from user {name}");
    let request = AuthUserRevokeRoleRequest { name, role };
    let answer = session.patient(async |client| client.auth().user_revoke_role(request).await).await?;
    show(session.printer.done(&done, answer.header.as_ref(), &answer)?)
}

#[cfg(test)]
mod tests {
    use super::super::flags::{self, Flag};
    use super::super::tree::{Body, ROOT};
    use super::*;

    fn user(line: &str) -> Result<AuthUserAddRequest, Failure> {
        let group = ROOT.iter().find(|command| command.name == "user").unwrap();
        let Body::Group(children) = group.body else { panic!("a group") };
        let flags: Vec<&Flag> = children[0].flags.iter().collect();
        let words: Vec<Word> = line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect();
        new_user(&flags::parse(&flags, &words).unwrap(), |name| Ok(format!("asked for {name}")))
    }

    #[test]
    fn a_password_comes_from_one_of_four_places() {
        for (line, name, password, none) in [
            ("u", "u", "asked for u", false),
            ("u:p:q", "u", "p:q", false),
            ("u:", "u", "", false),
            ("u:p --new-user-password x", "u:p", "x", false),
            ("u:p --no-password", "u:p", "", true),
        ] {
            let request = user(line).unwrap();
            let no_password = request.options.unwrap().no_password;
            assert_eq!(
                (request.name.as_str(), request.password.as_str(), no_password),
                (name, password, none),
                "{line}"
            );
        }
        assert_eq!(user(":p").unwrap_err(), Failure::args("empty user name is not allowed"));
        assert_eq!(user("a b").unwrap_err().code, 128);
    }
}
