//! The client command: keeps one local database in step with its server.

fn main() -> std::process::ExitCode {
    dockmaster::cli::remote_sync::main()
}
