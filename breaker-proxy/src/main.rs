//! Hands the arguments over to the verbs; it does nothing itself.

use std::process::ExitCode;

/// Many small allocations of one size come and go with each request: an allocator with per-thread lists is measurably cheaper.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    breaker_proxy::cli::main()
}
