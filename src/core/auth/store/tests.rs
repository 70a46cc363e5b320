use super::*;
use crate::core::auth::Access;
use crate::pb::authpb::Permission;
use crate::pb::authpb::permission::Type;

/// A store whose rows are kept, so that it can be read back.
struct Kept {
    store: AuthStore,
    backend: Backend,
    facts: Vec<AuthFact>,
}

impl Kept {
    fn new() -> Self {
        let backend = Backend::in_memory().expect("memory");
        Self { store: AuthStore::open(&backend).expect("empty"), backend, facts: Vec::new() }
    }

    fn keep(&mut self, changes: Changes) -> Result<(), AuthError> {
        let changes = changes?;
        let position = self.backend.durable();
        self.backend.submit(crate::core::backend::ChangeSet { position, changes });
        Ok(())
    }

    fn add(&mut self, name: &str, no_password: bool) -> Result<(), AuthError> {
        let options = Some(UserAddOptions { no_password });
        let hashed_password = STANDARD.encode(format!("hash of {name}"));
        let request = AuthUserAddRequest { name: name.to_owned(), options, hashed_password, ..Default::default() };
        let changes = self.store.user_add(&request);
        self.keep(changes)
    }

    fn role(&mut self, name: &str) -> Result<(), AuthError> {
        let changes = self.store.role_add(&AuthRoleAddRequest { name: name.to_owned() });
        self.keep(changes)
    }

    fn grant(&mut self, user: &str, role: &str) -> Result<(), AuthError> {
        let request = AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
        let changes = self.store.user_grant_role(&request);
        self.keep(changes)
    }

    fn revoke(&mut self, user: &str, role: &str) -> Result<(), AuthError> {
        let request = AuthUserRevokeRoleRequest { name: user.to_owned(), role: role.to_owned() };
        let changes = self.store.user_revoke_role(&request);
        self.keep(changes)
    }

    fn delete(&mut self, user: &str) -> Result<(), AuthError> {
        let request = AuthUserDeleteRequest { name: user.to_owned() };
        let changes = self.store.user_delete(&request, &mut self.facts);
        self.keep(changes)
    }

    fn permit(&mut self, role: &str, kind: Type, key: &str, end: &str) -> Result<(), AuthError> {
        let perm = Permission {
            perm_type: kind as i32,
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
        };
        let request = AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(perm) };
        let changes = self.store.role_grant_permission(&request);
        self.keep(changes)
    }

    fn enable(&mut self) -> Result<(), AuthError> {
        let changes = self.store.enable();
        self.keep(changes)
    }

    fn may(&self, user: &str, access: Access, key: &str, end: &str) -> Result<(), AuthError> {
        let state = self.store.state();
        state.check(&state.identity(user), access, key.as_bytes(), end.as_bytes())
    }

    fn read_back(&self) -> AuthStore {
        AuthStore::open(&self.backend).expect("readable")
    }
}

/// With users root and alice, role `r` with one permission, and auth on.
fn enabled() -> Kept {
    let mut kept = Kept::new();
    kept.add("root", false).expect("root");
    kept.grant("root", "root").expect("its role");
    kept.add("alice", false).expect("alice");
    kept.role("r").expect("a role");
    kept.permit("r", Type::Read, "k", "").expect("a permission");
    kept.grant("alice", "r").expect("for alice");
    kept.enable().expect("on");
    kept
}

#[test]
fn the_revision_counts_changes_and_nothing_else() {
    let mut kept = Kept::new();
    let revision = |kept: &Kept| kept.store.state().revision();
    assert_eq!(revision(&kept), 1);
    assert_eq!(kept.add("", false), Err(AuthError::UserEmpty));
    assert_eq!(kept.grant("root", "root"), Err(AuthError::UserNotFound));
    assert_eq!(kept.enable(), Err(AuthError::RootUserNotExist));
    assert_eq!(revision(&kept), 1);
    kept.add("root", false).expect("root");
    assert_eq!((revision(&kept), kept.add("root", false)), (2, Err(AuthError::UserExists)));
    assert_eq!(kept.enable(), Err(AuthError::RootRoleNotExist));
    assert_eq!(kept.grant("root", "other"), Err(AuthError::RoleNotFound));
    kept.grant("root", "root").expect("the role root need not exist");
    kept.grant("root", "root").expect("again is no error");
    assert_eq!(revision(&kept), 3);
    kept.enable().expect("on");
    kept.enable().expect("again is no error");
    assert_eq!(revision(&kept), 3, "enabling does not count");
    let changes = kept.store.disable(&mut kept.facts);
    kept.keep(Ok(changes)).expect("off");
    assert!(kept.store.disable(&mut kept.facts).is_empty() && kept.facts == [AuthFact::Disabled]);
    assert_eq!(revision(&kept), 4);
    assert_eq!(kept.read_back().state().revision(), 4);
}

impl std::fmt::Debug for AuthFact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LoggedIn { .. } => "LoggedIn",
            Self::UserChanged(_) => "UserChanged",
            Self::Disabled => "Disabled",
        })
    }
}

#[test]
fn root_cannot_be_lost_while_auth_is_on() {
    let mut kept = enabled();
    kept.role("root").expect("a role of that name");
    assert_eq!(kept.delete("root"), Err(AuthError::InvalidManagement));
    assert_eq!(kept.revoke("root", "root"), Err(AuthError::InvalidManagement));
    let role = AuthRoleDeleteRequest { role: "root".to_owned() };
    assert_eq!(kept.store.role_delete(&role).map(drop), Err(AuthError::InvalidManagement));
    let _ = kept.store.disable(&mut kept.facts);
    assert_eq!(kept.store.role_delete(&role).map(drop), Ok(()));
    assert_eq!(kept.delete("root"), Ok(()));
    assert_eq!(kept.enable(), Err(AuthError::RootUserNotExist));
}

#[test]
fn permissions_follow_roles_and_what_is_stored_gives_the_same() {
    let mut kept = enabled();
    assert_eq!(kept.may("alice", Access::Read, "k", ""), Ok(()));
    assert_eq!(kept.may("alice", Access::Write, "k", ""), Err(AuthError::PermissionDenied));
    assert_eq!(kept.may("alice", Access::Read, "k", "\0"), Err(AuthError::PermissionDenied));
    assert_eq!(kept.may("root", Access::Write, "a", "\0"), Ok(()));
    assert_eq!(kept.may("nobody", Access::Read, "k", ""), Err(AuthError::PermissionDenied));
    kept.permit("r", Type::Readwrite, "k", "").expect("the same range");
    assert_eq!(kept.may("alice", Access::Write, "k", ""), Ok(()));
    kept.permit("r", Type::Write, "a", "c").expect("another");
    let role = |store: &AuthStore| store.state().role(&store.state().identity("root"), "r").expect("the role");
    let permissions = role(&kept.store);
    assert_eq!(permissions.iter().map(|one| &one.key[..]).collect::<Vec<_>>(), [b"a", b"k"], "sorted, none twice");
    let read = kept.read_back();
    assert_eq!(role(&read), permissions);
    let who = read.state().identity("alice");
    assert_eq!(read.state().check(&who, Access::Write, b"b", b""), Ok(()));
    let delete = AuthRoleDeleteRequest { role: "r".to_owned() };
    let changes = kept.store.role_delete(&delete);
    kept.keep(changes).expect("there");
    assert_eq!(kept.may("alice", Access::Read, "k", ""), Err(AuthError::PermissionDenied));
    let root = kept.store.state().identity("root");
    assert_eq!(kept.read_back().state().user(&root, "alice"), Ok(Vec::new()));
}

#[test]
fn an_earlier_revision_and_nobody_are_refused() {
    let kept = enabled();
    let state = kept.store.state();
    let old = Identity { revision: state.revision() - 1, ..state.identity("root") };
    assert_eq!(state.check(&old, Access::Read, b"k", b""), Err(AuthError::OldRevision));
    assert_eq!(state.check_admin(&old), Ok(()), "as in etcd");
    let nobody = Identity::default();
    assert_eq!(state.check(&nobody, Access::Read, b"k", b""), Err(AuthError::UserEmpty));
    assert_eq!(state.check_admin(&nobody), Err(AuthError::UserEmpty));
    assert_eq!(state.check_known(&nobody), Err(AuthError::UserEmpty));
    let alice = state.identity("alice");
    assert_eq!(state.user(&alice, "alice"), Ok(vec!["r".to_owned()]));
    assert_eq!(state.user(&alice, "root"), Err(AuthError::PermissionDenied));
    assert_eq!(state.role(&alice, "r").map(|permissions| permissions.len()), Ok(1));
    assert_eq!(state.role(&alice, "none").map(drop), Err(AuthError::PermissionDenied));
    assert_eq!(state.user_names(&alice), Err(AuthError::PermissionDenied));
    let gone = state.identity("gone");
    assert_eq!(state.check_admin(&gone), Err(AuthError::UserNotFound));
}

#[test]
fn logins_need_a_password_and_their_tokens_end_with_it() {
    let mut kept = enabled();
    kept.add("cert", true).expect("without a password");
    let index = LogIndex(44);
    let login = |kept: &mut Kept, name: &str| {
        let request =
            InternalAuthenticateRequest { name: name.to_owned(), simple_token: "abc".to_owned(), ..Default::default() };
        kept.store.authenticate(&request, index, &mut kept.facts)
    };
    assert_eq!(login(&mut kept, "cert"), Err(AuthError::AuthFailed));
    assert_eq!(login(&mut kept, "nobody"), Err(AuthError::AuthFailed));
    assert!(login(&mut kept, "alice").is_ok());
    assert!(matches!(&kept.facts[..], [AuthFact::LoggedIn { token, .. }] if token == "abc.44"));
    let state = kept.store.state();
    assert_eq!(state.password_hash("alice"), Ok(Some(Bytes::from("hash of alice"))));
    assert_eq!((state.password_hash("cert"), state.password_hash("x")), (Err(AuthError::NoPasswordUser), Ok(None)));
    let change = |name: &str, hash: &str| AuthUserChangePasswordRequest {
        name: name.to_owned(),
        hashed_password: hash.to_owned(),
        ..Default::default()
    };
    assert_eq!(
        kept.store.user_change_password(&change("x", ""), &mut kept.facts).map(drop),
        Err(AuthError::UserNotFound)
    );
    assert_eq!(
        kept.store.user_change_password(&change("alice", "!"), &mut kept.facts).map(drop),
        Err(AuthError::NoPasswordUser)
    );
    kept.store.user_change_password(&change("alice", ""), &mut kept.facts).map(drop).expect("an empty hash");
    assert!(matches!(&kept.facts[1..], [AuthFact::UserChanged(user)] if **user == *"alice"));
    let _ = kept.store.disable(&mut kept.facts);
    assert_eq!(login(&mut kept, "alice"), Err(AuthError::NotEnabled));
}

#[test]
fn rows_are_those_of_etcd() {
    let kept = enabled();
    let rows = |table| {
        let rows = kept.backend.rows(table).expect("rows");
        rows.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect::<Vec<_>>()
    };
    let revision = kept.store.state().revision().to_be_bytes().to_vec();
    assert_eq!(rows(Table::Auth), [(b"authEnabled".to_vec(), vec![1]), (b"authRevision".to_vec(), revision)]);
    // Field 1 the name, field 2 one permission: READ is left out, then the key.
    assert_eq!(rows(Table::AuthRoles), [(b"r".to_vec(), b"\x0a\x01r\x12\x03\x12\x01k".to_vec())]);
    let alice = [&b"\x0a\x05alice\x12\x0dhash of alice"[..], b"\x1a\x01r", b"\x22\x00"].concat();
    assert_eq!(rows(Table::AuthUsers)[0], (b"alice".to_vec(), alice));
}

#[test]
fn nothing_secret_is_shown() {
    let kept = enabled();
    assert!(!format!("{:?} {:?}", kept.store, kept.store.state()).contains("hash of"));
}
