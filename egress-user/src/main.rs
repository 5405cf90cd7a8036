//! The `egress` command.
use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A round of the agent is mostly small objects made and dropped: beside ten thousand namespaces a
/// changed one costs a third less CPU than with the C library's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    egress_user::cli::main()
}
