//! The two programs from outside: what they print, where they print it, and the code that they end with.

use std::path::Path;
use std::process::{Command, Output};

const DOCKMASTER: &str = env!("CARGO_BIN_EXE_dockmaster");
const REMOTE_SYNC: &str = env!("CARGO_BIN_EXE_remote-sync");

/// Runs a program in `folder`, without colours and without a configuration from outside.
fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_remove("DOCKMASTER_CONFIG").env_remove("RUST_LOG").env("NO_COLOR", "1");
    command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Every command of a program, found by asking it for help, level by level.
fn commands_of(program: &str) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let mut found: Vec<Vec<String>> = vec![vec![]];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = run(program, folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{program} {arguments:?}: {}", stderr(&output));
        let text = stdout(&output);
        let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        for line in listed.filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
            let name = line.split_whitespace().next().unwrap_or_default();
            if name != "help" {
                found.push([path.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    found
}

#[test]
fn every_command_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    for program in [DOCKMASTER, REMOTE_SYNC] {
        let commands = commands_of(program);
        assert!(commands.len() > 1, "{program}: {commands:?}");
        for path in commands {
            let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
            arguments.push("-h");
            let text = stdout(&run(program, folder.path(), &arguments));
            let about = text.lines().next().unwrap_or_default();
            assert!(about.len() > 20 && !about.starts_with("Usage"), "{program} {path:?} does not say what it does: {about:?}");
            assert!(text.lines().all(|line| line.len() <= 140), "{program} {path:?}: {text}");
        }
    }
}
