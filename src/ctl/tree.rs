use super::flags::{Flag, Kind};

/// What a leaf of the command tree does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Put,
    Del,
    Txn,
    Watch,
    Compaction,
    LeaseGrant,
    LeaseRevoke,
    LeaseTimeToLive,
    LeaseList,
    LeaseKeepAlive,
    MemberList,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberPromote,
    EndpointStatus,
    EndpointHealth,
    EndpointHashKv,
    SnapshotSave,
    AlarmList,
    AlarmDisarm,
    Defrag,
    MoveLeader,
    ProxyStatus,
    GatewayStatus,
    DowngradeValidate,
    DowngradeEnable,
    DowngradeCancel,
    Lock,
    Elect,
    AuthEnable,
    AuthDisable,
    AuthStatus,
    UserAdd,
    UserDelete,
    UserGet,
    UserList,
    UserPassword,
    UserGrantRole,
    UserRevokeRole,
    RoleAdd,
    RoleDelete,
    RoleGet,
    RoleList,
    RoleGrantPermission,
    RoleRevokePermission,
    CheckPerf,
    CheckDatascale,
    MakeMirror,
    Completion,
    Help,
    Version,
    Options,
}

/// The sections of the root's help text, in etcdctl's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    KeyValue,
    Maintenance,
    Concurrency,
    Authentication,
    Utility,
    /// What etcdctl does not have.
    Own,
}

impl Section {
    pub(super) const ALL: [Self; 6] =
        [Self::KeyValue, Self::Maintenance, Self::Concurrency, Self::Authentication, Self::Utility, Self::Own];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::KeyValue => "Key-value commands",
            Self::Maintenance => "Cluster maintenance commands",
            Self::Concurrency => "Concurrency commands",
            Self::Authentication => "Authentication commands",
            Self::Utility => "Utility commands",
            Self::Own => "Commands that etcdctl does not have",
        }
    }
}

/// One node of the command tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    /// What follows the name in the usage line, without `[flags]`.
    pub(super) args: &'static str,
    pub(super) about: &'static str,
    /// Of a group: those of each of its commands, too.
    pub(super) flags: &'static [Flag],
    pub(super) section: Section,
    pub(super) body: Body,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Group(&'static [Command]),
    Leaf(Verb),
}

impl Command {
    const fn at(mut self, section: Section) -> Self {
        self.section = section;
        self
    }
}

const fn leaf(
    name: &'static str,
    args: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    verb: Verb,
) -> Command {
    Command { name, args, about, flags, section: Section::Utility, body: Body::Leaf(verb) }
}

const fn group(
    name: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    children: &'static [Command],
) -> Command {
    Command { name, args: "", about, flags, section: Section::Utility, body: Body::Group(children) }
}

const PREV_KV: Flag = Flag::new("prev-kv", Kind::Bool, "", "Also show the pairs as they were before");
const FROM_KEY: Flag = Flag::new("from-key", Kind::Bool, "", "Cover every key from this one on, in byte order");
const PREFIX: Flag = Flag::new("prefix", Kind::Bool, "", "Cover every key that starts like this one");
const CONSISTENCY: Flag = Flag::new("consistency", Kind::Text, "l", "l asks the leader, s reads what the member has");
const PEER_URLS: Flag = Flag::new("peer-urls", Kind::Text, "", "Where members reach it, separated by commas");
const CLUSTER: Flag =
    Flag::new("cluster", Kind::Bool, "", "Ask every member of the member list instead of --endpoints");
const PASSWORD_INTERACTIVE: Flag = Flag::new(
    "interactive",
    Kind::Bool,
    "true",
    "Ask for the password twice at the terminal; false reads it from standard input",
);
const AUTO_COMPACT: Flag = Flag::new("auto-compact", Kind::Bool, "", "Compact the store once the check is over");
const AUTO_DEFRAG: Flag = Flag::new("auto-defrag", Kind::Bool, "", "Defragment each endpoint once the check is over");

/// Flags of `get`, also inside `txn`.
pub(super) const GET_FLAGS: &[Flag] = &[
    CONSISTENCY,
    Flag::new("order", Kind::Text, "", "Order of the answer: ASCEND or DESCEND"),
    Flag::new("sort-by", Kind::Text, "", "What to sort by: CREATE, KEY, MODIFY, VALUE or VERSION"),
    Flag::new("limit", Kind::Int, "", "Show that many pairs at most"),
    PREFIX,
    FROM_KEY,
    Flag::new("rev", Kind::Int, "", "Read the store as it was at this revision"),
    Flag::new("keys-only", Kind::Bool, "", "Leave the values out"),
    Flag::new("count-only", Kind::Bool, "", "Only count (with -w fields)"),
    Flag::new("print-value-only", Kind::Bool, "", "Leave the keys out (with -w simple)"),
    Flag::new("min-create-rev", Kind::Int, "", "Leave out keys created before this revision"),
    Flag::new("max-create-rev", Kind::Int, "", "Leave out keys created after this revision"),
    Flag::new("min-mod-rev", Kind::Int, "", "Leave out keys last changed before this revision"),
    Flag::new("max-mod-rev", Kind::Int, "", "Leave out keys last changed after this revision"),
    Flag::new("stream", Kind::Bool, "", "Ask with RangeStream, which sends large answers in pieces"),
];

/// Flags of `put`, also inside `txn`.
pub(super) const PUT_FLAGS: &[Flag] = &[
    Flag::new("lease", Kind::Text, "0", "Lease that owns the key, in hex"),
    PREV_KV,
    Flag::new("ignore-value", Kind::Bool, "", "Keep the value the key has"),
    Flag::new("ignore-lease", Kind::Bool, "", "Keep the lease the key has"),
];

/// Flags of `del`, also inside `txn`.
pub(super) const DEL_FLAGS: &[Flag] =
    &[PREFIX, PREV_KV, FROM_KEY, Flag::new("range", Kind::Bool, "", "Delete a range without the pause of two seconds")];

/// Flags of `watch`, also on the lines of `watch -i`.
pub(super) const WATCH_FLAGS: &[Flag] = &[
    Flag::new("interactive", Kind::Bool, "", "Read watches from standard input").short('i'),
    PREFIX,
    Flag::new("rev", Kind::Int, "", "Start at this revision"),
    PREV_KV,
    Flag::new("progress-notify", Kind::Bool, "", "Show the progress the server reports from time to time"),
];

const LEASE: &[Command] = &[
    leaf("grant", "<ttl>", "Grants a lease of that many seconds", &[], Verb::LeaseGrant),
    leaf("revoke", "<leaseID>", "Ends a lease and deletes its keys", &[], Verb::LeaseRevoke),
    leaf(
        "timetolive",
        "<leaseID> [options]",
        "Shows how long a lease has left",
        &[Flag::new("keys", Kind::Bool, "", "Also show the keys it owns")],
        Verb::LeaseTimeToLive,
    ),
    leaf("list", "", "Lists the leases", &[], Verb::LeaseList),
    leaf(
        "keep-alive",
        "[options] <leaseID>",
        "Renews a lease until it is gone",
        &[Flag::new("once", Kind::Bool, "", "Renew it once and end")],
        Verb::LeaseKeepAlive,
    ),
];

const MEMBER: &[Command] = &[
    leaf(
        "add",
        "<memberName> [options]",
        "Adds a member",
        &[PEER_URLS, Flag::new("learner", Kind::Bool, "", "Add it without a vote")],
        Verb::MemberAdd,
    ),
    leaf("remove", "<memberID>", "Removes a member", &[], Verb::MemberRemove),
    leaf("update", "<memberID> [options]", "Changes the peer URLs of a member", &[PEER_URLS], Verb::MemberUpdate),
    leaf("list", "", "Lists the members", &[CONSISTENCY], Verb::MemberList),
    leaf("promote", "<memberID>", "Gives a learner its vote", &[], Verb::MemberPromote),
];

const ENDPOINT: &[Command] = &[
    leaf("health", "", "Tells whether each endpoint can do a read through the leader", &[], Verb::EndpointHealth),
    leaf("status", "", "Shows versions, sizes and raft positions of each endpoint", &[], Verb::EndpointStatus),
    leaf(
        "hashkv",
        "",
        "Shows the hash of the stored history at each endpoint",
        &[Flag::new("rev", Kind::Int, "", "Hash up to this revision; 0 is the newest")],
        Verb::EndpointHashKv,
    ),
];

const PROXY: &[Command] = &[leaf(
    "status",
    "",
    "Shows endpoints, cached ranges and counts of each gRPC proxy among the endpoints",
    &[],
    Verb::ProxyStatus,
)];

const GATEWAY: &[Command] = &[leaf(
    "status",
    "",
    "Shows the endpoints of each gateway, whose metrics addresses are the endpoints",
    &[],
    Verb::GatewayStatus,
)];

const SNAPSHOT: &[Command] =
    &[leaf("save", "<filename>", "Saves the db snapshot of one member to a file", &[], Verb::SnapshotSave)];

const AUTH: &[Command] = &[
    leaf("enable", "", "Turns authentication on", &[], Verb::AuthEnable),
    leaf("disable", "", "Turns authentication off", &[], Verb::AuthDisable),
    leaf("status", "", "Shows whether authentication is on", &[], Verb::AuthStatus),
];

const USER: &[Command] = &[
    leaf(
        "add",
        "<user name or user:password> [options]",
        "Adds a user",
        &[
            PASSWORD_INTERACTIVE,
            Flag::new("new-user-password", Kind::Text, "", "Password of the new user, instead of asking"),
            Flag::new("no-password", Kind::Bool, "", "Add a user that only a certificate's CommonName can be"),
        ],
        Verb::UserAdd,
    ),
    leaf("delete", "<user name>", "Deletes a user", &[], Verb::UserDelete),
    leaf(
        "get",
        "<user name> [options]",
        "Shows the roles of a user",
        &[Flag::new("detail", Kind::Bool, "", "Show the permissions of each role, too")],
        Verb::UserGet,
    ),
    leaf("list", "", "Lists the users", &[], Verb::UserList),
    leaf("passwd", "<user name> [options]", "Changes a user's password", &[PASSWORD_INTERACTIVE], Verb::UserPassword),
    leaf("grant-role", "<user name> <role name>", "Gives a user a role", &[], Verb::UserGrantRole),
    leaf("revoke-role", "<user name> <role name>", "Takes a role from a user", &[], Verb::UserRevokeRole),
];

const ROLE: &[Command] = &[
    leaf("add", "<role name>", "Adds a role", &[], Verb::RoleAdd),
    leaf("delete", "<role name>", "Deletes a role", &[], Verb::RoleDelete),
    leaf("get", "<role name>", "Shows what a role permits", &[], Verb::RoleGet),
    leaf("list", "", "Lists the roles", &[], Verb::RoleList),
    leaf(
        "grant-permission",
        "[options] <role name> <permission type> <key> [endkey]",
        "Permits a role read, write or readwrite on a key or a range",
        &[PREFIX, FROM_KEY],
        Verb::RoleGrantPermission,
    ),
    leaf(
        "revoke-permission",
        "<role name> <key> [endkey]",
        "Takes a permission from a role",
        &[PREFIX, FROM_KEY],
        Verb::RoleRevokePermission,
    ),
];

const CHECK: &[Command] = &[
    leaf(
        "perf",
        "[options]",
        "Measures for a minute whether the cluster keeps up with a load",
        &[
            Flag::new(
                "load",
                Kind::Text,
                "s",
                "How much: s (150 writes/s of 50 clients), m (1000 of 200), l (8000 of 500) or xl (15000 of 1000)",
            ),
            Flag::new("prefix", Kind::Text, "/etcdctl-check-perf/", "Where the keys of the check are written"),
            AUTO_COMPACT,
            AUTO_DEFRAG,
        ],
        Verb::CheckPerf,
    ),
    leaf(
        "datascale",
        "[options]",
        "Measures the memory that the first endpoint needs for an amount of data",
        &[
            Flag::new(
                "load",
                Kind::Text,
                "s",
                "How much: s (10,000 pairs of 1 KiB), m (100,000), l (1,000,000) or xl (3,000,000)",
            ),
            Flag::new("prefix", Kind::Text, "/etcdctl-check-datascale/", "Where the keys of the check are written"),
            AUTO_COMPACT,
            AUTO_DEFRAG,
        ],
        Verb::CheckDatascale,
    ),
];

const DOWNGRADE: &[Command] = &[
    leaf(
        "validate",
        "<TARGET_VERSION>",
        "Asks whether the cluster could go down to a version",
        &[],
        Verb::DowngradeValidate,
    ),
    leaf("enable", "<TARGET_VERSION>", "Starts the downgrade to a version", &[], Verb::DowngradeEnable),
    leaf("cancel", "", "Ends a downgrade that has not been carried out", &[], Verb::DowngradeCancel),
];

const MIRROR_FLAGS: &[Flag] = &[
    Flag::new("prefix", Kind::Text, "", "Mirror the keys that start so"),
    Flag::new("rev", Kind::Int, "", "Mirror the changes from this revision on, instead of everything there is"),
    Flag::new("max-txn-ops", Kind::Uint, "128", "Operations in one transaction at the destination at most"),
    Flag::new("dest-prefix", Kind::Text, "", "What keys start with at the destination instead"),
    Flag::new("no-dest-prefix", Kind::Bool, "", "Cut the prefix off the keys at the destination"),
    Flag::new("dest-cert", Kind::Text, "", "Certificate file to show to the destination"),
    Flag::new("dest-key", Kind::Text, "", "Key file of that certificate"),
    Flag::new("dest-cacert", Kind::Text, "", "File of the authorities that may sign the destination's certificate"),
    Flag::new("dest-insecure-transport", Kind::Bool, "true", "Talk to the destination without TLS"),
    Flag::new("dest-user", Kind::Text, "", "User at the destination, as NAME[:PASSWORD]; asks for what is missing"),
    Flag::new("dest-password", Kind::Text, "", "Password at the destination, when --dest-user has none"),
];

/// The commands of etcdctl, in the order in which its suggestions come.
pub(super) const ROOT: &[Command] = &[
    leaf("get", "[options] <key> [range_end]", "Shows a key or a range of keys", GET_FLAGS, Verb::Get)
        .at(Section::KeyValue),
    leaf(
        "put",
        "[options] <key> <value> (without <value> it is read from standard input)",
        "Writes a key",
        PUT_FLAGS,
        Verb::Put,
    )
    .at(Section::KeyValue),
    leaf("del", "[options] <key> [range_end]", "Deletes a key or a range of keys", DEL_FLAGS, Verb::Del)
        .at(Section::KeyValue),
    leaf(
        "txn",
        "[options]",
        "Runs a transaction that it reads from standard input",
        &[Flag::new("interactive", Kind::Bool, "", "Prompt for each part").short('i')],
        Verb::Txn,
    )
    .at(Section::KeyValue),
    leaf(
        "compaction",
        "[options] <revision>",
        "Removes the history before a revision",
        &[Flag::new("physical", Kind::Bool, "", "Wait until the old revisions are gone from the disk")],
        Verb::Compaction,
    )
    .at(Section::KeyValue),
    group(
        "alarm",
        "Shows and clears alarms",
        &[],
        &[
            leaf("disarm", "", "Clears all alarms", &[], Verb::AlarmDisarm),
            leaf("list", "", "Lists the alarms that are raised", &[], Verb::AlarmList),
        ],
    )
    .at(Section::Maintenance),
    leaf("defrag", "", "Gives unused space of each endpoint back to its disk", &[CLUSTER], Verb::Defrag)
        .at(Section::Maintenance),
    group("endpoint", "Asks each endpoint about itself", &[CLUSTER], ENDPOINT).at(Section::Maintenance),
    leaf("move-leader", "<transferee-member-id>", "Transfers leadership to another member", &[], Verb::MoveLeader)
        .at(Section::Maintenance),
    leaf(
        "watch",
        "[options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
        "Shows changes as they happen, or runs a command for each",
        WATCH_FLAGS,
        Verb::Watch,
    )
    .at(Section::KeyValue),
    VERSION,
    group("lease", "Grants, revokes and shows leases", &[], LEASE).at(Section::KeyValue),
    group("member", "Shows and changes the members of the cluster", &[], MEMBER).at(Section::Maintenance),
    group("proxy", "Asks gRPC proxies about themselves", &[], PROXY).at(Section::Own),
    group("gateway", "Asks TCP gateways about themselves", &[], GATEWAY).at(Section::Own),
    group("snapshot", "Saves and inspects db snapshots of the store", &[], SNAPSHOT).at(Section::Maintenance),
    leaf(
        "make-mirror",
        "[options] <destination>",
        "Copies keys and their changes to another cluster",
        MIRROR_FLAGS,
        Verb::MakeMirror,
    ),
    leaf(
        "lock",
        "<lockname> [exec-command arg1 arg2 ...]",
        "Holds a lock until a signal, or while a command runs",
        &[Flag::new("ttl", Kind::Int, "10", "Seconds the lock outlives a client that falls silent")],
        Verb::Lock,
    )
    .at(Section::Concurrency),
    leaf(
        "elect",
        "<election-name> [proposal]",
        "Stands for election, or follows one",
        &[Flag::new("listen", Kind::Bool, "", "Only follow").short('l')],
        Verb::Elect,
    )
    .at(Section::Concurrency),
    group("auth", "Turns authentication on and off", &[], AUTH).at(Section::Authentication),
    group("user", "Shows and changes users", &[], USER).at(Section::Authentication),
    group("role", "Shows and changes roles", &[], ROLE).at(Section::Authentication),
    group("check", "Measures properties of the cluster", &[], CHECK),
    leaf(
        "completion",
        "[bash|zsh|fish|powershell]",
        "Prints a script by which a shell completes this program's commands and flags",
        &[],
        Verb::Completion,
    ),
    group("downgrade", "Prepares a downgrade of the cluster", &[], DOWNGRADE).at(Section::Maintenance),
    leaf("options", "", "Lists the flags that every command takes", &[], Verb::Options),
    HELP,
];

const HELP: Command = leaf("help", "[command]", "Shows the help text of a command", &[], Verb::Help);
const VERSION: Command = leaf("version", "", "Shows the version of this client and of its API", &[], Verb::Version);
