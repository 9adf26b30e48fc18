//! The server-side router service and its administration.

fn main() -> std::process::ExitCode {
    dockmaster::cli::dockmaster::main()
}
