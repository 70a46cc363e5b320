//! What the ports of core, proxy and gateway answer beside the etcd API.
//!
//! `page.rs` has the plain HTTP answers that are the same everywhere (refusals, health),
//! `browsers.rs` what browsers may do, `metrics_page.rs` and `debug_vars.rs` those pages, `command_line.rs` what they show of the
//! arguments,
//! `checks.rs` the parameters and the text of `/livez` and `/readyz`, `health.rs` the gRPC health service, `profiles.rs` the
//! pages below `/debug/pprof/` (`cpu_profile.rs` takes the profiles), `ui.rs` the status page (`ui/`, served as it
//! is). Which paths a port has, and what a check does, is for the
//! room of the port.

mod browsers;
mod checks;
mod command_line;
mod cpu_profile;
mod debug_vars;
mod health;
mod metrics_page;
mod page;
mod profiles;
mod ui;

pub use browsers::BrowserRules;
pub use checks::{CheckQuery, CheckReport};
pub use debug_vars::debug_vars;
pub use health::HealthService;
pub use metrics_page::metrics_page;
pub use page::{JSON, Page, TEXT, health_json, nosniff, not_found, page, refused_method, text};
pub use profiles::Profiles;
pub use ui::StatusPage;
