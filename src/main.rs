//! Arguments, logging, exit code; everything else is in the library.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // Huge pages back what is reserved, not what is used: a buffer of 1.5 MB that holds one byte costs 2 MB. Where the
    // system does not know the setting there are none.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    std::process::ExitCode::from(watershed::cmd::run(std::env::args_os().collect()))
}
