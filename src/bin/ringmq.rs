//! The one binary. Everything is in the library's `app`.

/// The runtime's authors recommend it: many small allocations on many cores.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ringmq::app::main().into()
}
