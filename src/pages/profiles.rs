use std::fmt::Write;
use std::sync::mpsc;
use std::time::Duration;

use http::header::{CONTENT_DISPOSITION, HeaderValue, LOCATION};
use http::{Method, StatusCode, Uri};

use super::command_line::command_line;
use super::cpu_profile::{CpuProfileError, cpu_profile};
use super::page::{Page, TEXT, nosniff, page, refused_method, text};

/// Where profiles are; etcd's path.
const PREFIX: &str = "/debug/pprof/";
/// Length of a CPU profile, unless asked for otherwise.
const LENGTH: Duration = Duration::from_secs(30);
/// The longest; the memory of a profile grows with its length.
const LENGTH_MAX: Duration = Duration::from_secs(600);

/// Profiles that Go's runtime has and this program has not, and why.
const ABSENT: [(&str, &str); 7] = [
    ("allocs", "the allocator (mimalloc) does not keep where memory was allocated"),
    ("block", "waits are not sampled"),
    ("goroutine", "tasks are not goroutines: nobody keeps their stacks"),
    ("heap", "the allocator (mimalloc) does not keep where memory was allocated; /metrics has the size of the process"),
    ("mutex", "waits for locks are not sampled"),
    ("threadcreate", "the number of threads does not change after the start"),
    ("trace", "there is no runtime that writes Go's execution traces; see --enable-distributed-tracing"),
];

/// The pages below `/debug/pprof/`, as Go's `net/http/pprof` has them. Only for a port whose operator asked for them.
#[derive(Clone, Copy, Debug)]
pub struct Profiles;

impl Profiles {
    /// Whether `path` is one of these pages, or their folder.
    pub fn has(path: &str) -> bool {
        path.strip_prefix("/debug/pprof").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Answers a request for such a path. A CPU profile ends when the future is dropped.
    pub async fn answer(self, method: &Method, uri: &Uri) -> Page {
        if let Some(refused) = refused_method(method, uri.path()) {
            return refused;
        }
        let Some(name) = uri.path().strip_prefix(PREFIX) else {
            // Links of the index are relative.
            let mut moved = page(StatusCode::TEMPORARY_REDIRECT, TEXT, "");
            moved.headers_mut().insert(LOCATION, HeaderValue::from_static(PREFIX));
            return moved;
        };
        match name {
            "" => index(),
            // With a zero byte between the arguments.
            "cmdline" => nosniff(page(StatusCode::OK, TEXT, command_line().join("\0"))),
            "profile" => match length(uri.query()) {
                Ok(length) => cpu(length).await,
                Err(reason) => failed(StatusCode::BAD_REQUEST, reason),
            },
            "symbol" => named(uri.query().unwrap_or_default().to_owned()).await,
            _ => match ABSENT.iter().find(|(absent, _)| *absent == name) {
                Some((name, why)) => failed(StatusCode::NOT_FOUND, format!("no profile {name}: {why}")),
                None => failed(StatusCode::NOT_FOUND, "Unknown profile".to_owned()),
            },
        }
    }
}

/// A refusal whose text `go tool pprof` shows.
fn failed(status: StatusCode, reason: String) -> Page {
    let mut refused = text(status, reason + "\n");
    refused.headers_mut().insert("x-go-pprof", HeaderValue::from_static("1"));
    refused
}

fn index() -> Page {
    let mut html = String::from(
        "<html>\n<head><title>/debug/pprof/</title></head>\n<body>\n/debug/pprof/\n<ul>\n\
         <li><a href=\"profile\">profile</a>: CPU, for <code>?seconds=</code> (30)</li>\n\
         <li><a href=\"cmdline\">cmdline</a>: the command line</li>\n\
         <li><a href=\"symbol\">symbol</a>: names of functions by their addresses</li>\n</ul>\nNot there:\n<ul>\n",
    );
    for (name, why) in ABSENT {
        let _ = writeln!(html, "<li>{name}: {why}</li>");
    }
    html += "</ul>\n</body>\n</html>\n";
    nosniff(page(StatusCode::OK, "text/html; charset=utf-8", html))
}

/// What the query asks for; Go takes thirty seconds for anything that is no positive number.
fn length(query: Option<&str>) -> Result<Duration, String> {
    let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let seconds = pairs.find(|(name, _)| name == "seconds").and_then(|(_, value)| value.parse().ok());
    match seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs) {
        Some(length) if length > LENGTH_MAX => Err(format!("seconds: at most {}", LENGTH_MAX.as_secs())),
        length => Ok(length.unwrap_or(LENGTH)),
    }
}

async fn cpu(length: Duration) -> Page {
    // Its sender goes with this future.
    let (_waiting, abandoned) = mpsc::channel();
    let profiled = tokio::task::spawn_blocking(move || cpu_profile(length, &abandoned)).await;
    match profiled.unwrap_or(Err(CpuProfileError::Abandoned)) {
        Ok(profile) => {
            let mut found = nosniff(page(StatusCode::OK, "application/octet-stream", profile));
            found
                .headers_mut()
                .insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"profile\""));
            found
        }
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Its work is not that of a serving thread: the symbols of the program are read for it.
async fn named(query: String) -> Page {
    match tokio::task::spawn_blocking(move || symbols(&query)).await {
        Ok(names) => nosniff(page(StatusCode::OK, TEXT, names)),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The names of the functions at the addresses of the query, `0x1+0x2`.
fn symbols(query: &str) -> String {
    // The number says only that there are symbols.
    let mut found = String::from("num_symbols: 1\n");
    for text in query.split('+') {
        let digits = text.trim_start_matches("0x");
        let Ok(address) = usize::from_str_radix(digits, 16) else { continue };
        // The library takes an address for that behind a call, and looks at the byte before.
        backtrace::resolve(std::ptr::without_provenance_mut(address.saturating_add(1)), |symbol| {
            if let Some(name) = symbol.name() {
                let _ = writeln!(found, "{address:#x} {name}");
            }
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use http_body_util::BodyExt;
    use prost::Message;
    use std::io::Read;

    async fn get(path: &str) -> (u16, Vec<u8>) {
        let page = Profiles.answer(&Method::GET, &path.parse().expect("a path")).await;
        (page.status().as_u16(), page.into_body().collect().await.expect("a page").to_bytes().into())
    }

    fn read(path: &str) -> (u16, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (status, body) = runtime.block_on(get(path));
        (status, String::from_utf8(body).expect("text"))
    }

    #[test]
    fn only_this_folder_is_theirs() {
        for (path, is) in [("/debug/pprof", true), ("/debug/pprof/heap", true), ("/debug/pprofs", false), ("/", false)]
        {
            assert_eq!(Profiles::has(path), is, "{path}");
        }
    }

    #[test]
    fn every_name_of_go_has_an_answer() {
        assert_eq!(read("/debug/pprof/symbol").1, "num_symbols: 1\n");
        let (status, line) = read("/debug/pprof/cmdline");
        assert_eq!((status, line.split('\0').count()), (200, std::env::args_os().count()));
        let (status, index) = read("/debug/pprof/");
        assert_eq!(status, 200);
        for (name, why) in ABSENT {
            assert!(index.contains(&format!("<li>{name}: ")), "{index}");
            assert_eq!(read(&format!("/debug/pprof/{name}")), (404, format!("no profile {name}: {why}\n")));
        }
        assert_eq!(read("/debug/pprof").0, 307);
        assert_eq!(read("/debug/pprof/nothing"), (404, "Unknown profile\n".into()));
        assert_eq!(read("/debug/pprof/profile?seconds=601"), (400, "seconds: at most 600\n".into()));
    }

    #[test]
    fn lengths_are_read_as_go_does() {
        let seconds = |query| length(Some(query)).map(|length| length.as_secs());
        assert_eq!(seconds("seconds=7&x=y"), Ok(7));
        assert_eq!((seconds("seconds=0"), seconds("seconds=-1"), seconds("seconds=x")), (Ok(30), Ok(30), Ok(30)));
        assert_eq!(length(None), Ok(LENGTH));
        assert!(seconds("seconds=99999999999").is_err());
    }

    #[test]
    fn an_address_has_a_name() {
        let address = an_address_has_a_name as *const () as usize;
        let found = symbols(&format!("{address:#x}+nonsense+0x1"));
        assert!(found.contains(&format!("{address:#x} ")) && found.contains("an_address_has_a_name"), "{found}");
        assert_eq!(found.lines().count(), 2, "{found}");
    }

    #[test]
    fn names_are_looked_up_beside_the_serving_thread() {
        // Cause: the first look-up reads the symbols of the whole program, and did so where requests are served.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime");
        let (release, held) = mpsc::channel::<()>();
        runtime.block_on(async {
            let holder = tokio::task::spawn_blocking(move || held.recv());
            let mut found = std::pin::pin!(get("/debug/pprof/symbol?0x1"));
            assert!(futures::poll!(found.as_mut()).is_pending(), "the one thread for it is taken");
            release.send(()).expect("it is waited for");
            holder.await.expect("it ends").expect("it was told");
            assert_eq!(found.await.0, 200);
        });
    }

    /// Keeps a processor busy under a name that a profile can show.
    #[inline(never)]
    fn keeps_a_processor_busy(done: &std::sync::atomic::AtomicBool) -> u64 {
        let mut sum = 0_u64;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            sum = ::std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        sum
    }

    #[test]
    fn a_profile_names_what_is_busy_and_one_is_taken_at_a_time() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let done = std::sync::atomic::AtomicBool::new(false);
        let (found, refused, again) = std::thread::scope(|scope| {
            scope.spawn(|| keeps_a_processor_busy(&done));
            let answers = runtime.block_on(async {
                let abandoned = tokio::time::timeout(Duration::from_millis(50), get("/debug/pprof/profile")).await;
                assert!(abandoned.is_err(), "thirty seconds are not over");
                // The one whose client is gone ends on its own.
                let found = loop {
                    match get("/debug/pprof/profile?seconds=1").await {
                        (500, _) => tokio::task::yield_now().await,
                        found => break found,
                    }
                };
                let both =
                    futures::future::join(get("/debug/pprof/profile?seconds=1"), get("/debug/pprof/profile?seconds=1"));
                let (one, other) = both.await;
                let (again, refused) = if one.0 == 200 { (one, other) } else { (other, one) };
                (found, refused, again)
            });
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            answers
        });
        assert_eq!((found.0, again.0, refused.0), (200, 200, 500));
        let reason = String::from_utf8(refused.1).expect("text");
        assert_eq!(reason, "Could not enable CPU profiling: cpu profiling already in use\n");
        let mut bytes = Vec::new();
        GzDecoder::new(found.1.as_slice()).read_to_end(&mut bytes).expect("gzip");
        let profile = crate::pb::profiles::Profile::decode(bytes.as_slice()).expect("a profile");
        let name = |number: i64| profile.string_table[number as usize].as_str();
        let busy = profile.function.iter().find(|function| name(function.name).ends_with("keeps_a_processor_busy"));
        let busy = busy.unwrap_or_else(|| panic!("{} samples, {:?}", profile.sample.len(), profile.string_table));
        let places = profile.location.iter().filter(|at| at.line.iter().any(|line| line.function_id == busy.id));
        let places: Vec<_> = places.map(|at| at.id).collect();
        let with = profile.sample.iter().filter(|sample| sample.location_id.iter().any(|id| places.contains(id)));
        let cpu: i64 = with.map(|sample| sample.value[1]).sum();
        assert!(cpu > 0, "CPU time of the busy thread");
        assert_eq!((profile.period, name(profile.sample_type[1].r#type)), (10_000_000, "cpu"));
    }
}
