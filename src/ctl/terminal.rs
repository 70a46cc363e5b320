use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Asks for a secret. At a terminal it is typed without echo; otherwise, as with etcdctl, it is the next line of
/// standard input.
pub(super) fn secret(prompt: &str) -> std::io::Result<String> {
    let mut out = std::io::stdout().lock();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    if std::io::stdin().is_terminal() {
        return rpassword::read_password();
    }
    let line = line()?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(line)
}

/// The next line of standard input without its end; empty when there is none.
pub(super) fn line() -> std::io::Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// A bar on standard error, drawn on a terminal only.
pub(super) fn bar(length: u64) -> ProgressBar {
    drawn(Some(length), "{bar:40} {percent:>3}% {elapsed_precise} of about {duration_precise}")
}

/// A count of bytes on standard error, drawn on a terminal only.
pub(super) fn bytes() -> ProgressBar {
    drawn(None, "{decimal_bytes} in {elapsed_precise}, {decimal_bytes_per_sec}")
}

fn drawn(length: Option<u64>, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_style(style)
}
