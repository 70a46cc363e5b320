use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// What `--debug` shows besides the options: connections, logins and requests, without keys, values and secrets. The
/// libraries below are left out; their lines hold headers.
const SHOWN: &str = "watershed::client=debug,watershed::net=debug";

/// Writes what the client does to standard error from now on.
pub(super) fn start() {
    let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(SHOWN)).with_writer(std::io::stderr);
    // Whoever embeds the client may have a subscriber of its own; its lines go there then.
    let _ = lines.with_ansi(false).finish().try_init();
}
