//! Arguments, logging, exit code; everything else is in the library.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(watershed::cmd::run(std::env::args_os().collect()))
}
