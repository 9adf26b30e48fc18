//! Drives the built programs from outside: a server with its docking root, clients with their local databases.

use dockmaster::model::value::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The number that a variable of the environment gives.
pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// The seed of a random test: the same each time, so that a failure is the build's own; `DOCK_SEED` chooses others.
pub(crate) fn seed() -> u64 {
    number("DOCK_SEED").unwrap_or(1)
}

/// What a random case came to, or why it failed and what it had done.
pub(crate) type Played<D> = Result<D, (String, Vec<String>)>;

/// Plays a random case; a panic is a failure with what was done until then, which the case notes in `log`.
pub(crate) fn play<C, D>(
    make: impl FnOnce() -> Result<C, (String, Vec<String>)>,
    run: impl FnOnce(&mut C) -> Result<D, String>,
    log: impl Fn(&C) -> Vec<String>,
) -> Played<D> {
    let mut case = None;
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let case = case.insert(make()?);
        run(case).map_err(|error| (error, log(case)))
    }));
    played.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err((text.unwrap_or_default(), case.as_ref().map(&log).unwrap_or_default()))
    })
}

/// Changes a local database without its triggers, as damage does.
pub(crate) fn behind_our_back(site: &Site, database: &str, sql: &str) {
    let conn = rusqlite::Connection::open(site.path(database)).unwrap();
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    conn.execute_batch(sql).unwrap();
}

/// A folder with a server database and a definition.
pub struct Site {
    pub folder: tempfile::TempDir,
    server: Option<(Child, String)>,
}

impl Site {
    /// Makes a site whose definition listens on a free port; a `[server]` section of the definition gives way to the site's own.
    pub fn new(database: impl FnOnce(&Path), definition: &str) -> Site {
        Site::new_in(tempfile::tempdir().unwrap(), database, definition)
    }

    /// Like [`Site::new`], in a folder of the caller's.
    pub fn new_in(folder: tempfile::TempDir, database: impl FnOnce(&Path), definition: &str) -> Site {
        database(&folder.path().join("hq.db"));
        let definition = without_server(definition);
        let settings = "[server]\nname = \"HQ\"\ndatabase = \"hq.db\"\nlisten = \"127.0.0.1:0\"\n";
        std::fs::write(folder.path().join("dockmaster.toml"), format!("{definition}\n{settings}")).unwrap();
        Site { folder, server: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a copy of everything, as if the machine were there twice. No service runs on it.
    pub fn copied(&self) -> Site {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), folder.path());
        Site { folder, server: None }
    }

    /// Returns a call of one of the two programs, to be run in the folder of the site.
    pub fn command(&self, program: Program, arguments: &[&str]) -> Command {
        let mut command = Command::new(match program {
            Program::Dockmaster => env!("CARGO_BIN_EXE_dockmaster"),
            Program::RemoteSync => env!("CARGO_BIN_EXE_remote-sync"),
        });
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs the server program to its end.
    pub fn dockmaster(&self, arguments: &[&str]) -> Output {
        self.command(Program::Dockmaster, arguments).output().unwrap()
    }

    /// Runs the server program and demands success. Returns what it printed on stdout.
    pub fn dockmaster_ok(&self, arguments: &[&str]) -> String {
        succeeded("dockmaster", arguments, self.dockmaster(arguments))
    }

    /// Runs the client program to its end.
    pub fn remote_sync(&self, arguments: &[&str]) -> Output {
        self.command(Program::RemoteSync, arguments).output().unwrap()
    }

    /// Runs the client program and demands success. Returns what it printed on stdout.
    pub fn remote_sync_ok(&self, arguments: &[&str]) -> String {
        succeeded("remote-sync", arguments, self.remote_sync(arguments))
    }

    /// Gives a node a token, as an administrator does, and returns it.
    pub fn token(&self, node: &str) -> String {
        token(&self.dockmaster_ok(&["node", "token", node, "--json"]))
    }

    /// A token of this server that nobody gave out.
    pub fn forged_token(&self, node: &str) -> String {
        let real: dockmaster::trust::token::Token = self.token(node).parse().unwrap();
        dockmaster::trust::token::Token::generate(real.server).unwrap().reveal()
    }

    /// Starts the service and returns its address.
    pub fn serve(&mut self) -> String {
        let command = self.command(Program::Dockmaster, &["serve"]);
        self.serve_as(command)
    }

    /// Starts the service by a command of the caller and returns its address.
    pub fn serve_as(&mut self, mut command: Command) -> String {
        command.stderr(Stdio::inherit());
        self.served_by(command)
    }

    /// Like [`Site::serve_as`], with the log in a file.
    pub fn serve_logging(&mut self, mut command: Command, log: std::fs::File) -> String {
        command.stderr(log);
        self.served_by(command)
    }

    fn served_by(&mut self, mut command: Command) -> String {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut address = None;
        let mut lines = BufReader::new(stdout).lines();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                address = rest.split_whitespace().next().map(str::to_owned);
                break;
            }
        }
        // The rest is read so that the service never waits for a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.expect("serve says where it listens");
        self.server = Some((child, address.clone()));
        address
    }

    /// Returns the process number of the running service.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().0.id()
    }

    pub fn address(&self) -> &str {
        &self.server.as_ref().unwrap().1
    }

    /// Gives the running service away, with its address.
    pub fn take_server(&mut self) -> (Child, String) {
        self.server.take().expect("the service runs")
    }

    /// Returns whether the service still runs.
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|(child, _)| child.try_wait().unwrap().is_none())
    }

    /// Ends the service as Ctrl-C does and demands a clean end.
    pub fn stop(&mut self) {
        if let Some((child, _)) = self.server.take() {
            interrupt(child);
        }
    }

    /// Sends a signal to the service and returns how it ended and how long that took.
    pub fn signal(&mut self, signal: &str) -> (ExitStatus, Duration) {
        let (mut child, _) = self.server.take().expect("the service runs");
        let began = Instant::now();
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        (child.wait().unwrap(), began.elapsed())
    }

    /// Waits until the service has ended by itself and returns how.
    pub fn ended(&mut self) -> ExitStatus {
        self.server.take().expect("the service was started").0.wait().unwrap()
    }

    /// Starts the client program and leaves it running.
    pub fn remote_sync_started(&self, arguments: &[&str]) -> Child {
        self.command(Program::RemoteSync, arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs SQL on a database of the site with the plain `sqlite3` program. Statements that fail are part of the game.
    pub fn sqlite3(&self, database: &str, sql: &str) -> Output {
        use std::io::Write;
        let mut child = Command::new("sqlite3")
            .args(["-cmd", ".timeout 10000"])
            .arg(self.path(database))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the sqlite3 program; scripts/test.sh installs it");
        child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

/// Takes the token out of what `node token --json` printed.
pub fn token(printed: &str) -> String {
    let document: serde_json::Value = serde_json::from_str(printed).unwrap();
    document["token"].as_str().unwrap().to_owned()
}

/// One of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Dockmaster,
    RemoteSync,
}

/// Copies a folder with everything in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else if path.is_file() {
            // Sockets of a service that runs stay behind.
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Ends a program as Ctrl-C does and demands a clean end.
pub fn interrupt(mut child: Child) {
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(child.wait().unwrap().success(), "it ends cleanly");
}

/// Takes the `[server]` section out of a definition.
pub fn without_server(definition: &str) -> String {
    let mut inside = false;
    let kept = definition.lines().filter(|line| {
        inside = if line.starts_with('[') { *line == "[server]" } else { inside };
        !inside
    });
    kept.collect::<Vec<_>>().join("\n")
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.server.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn succeeded(program: &str, arguments: &[&str], output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?} ended with {:?}\n{stdout}\n{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// Returns the rows of a query as SQL literals, sorted: byte-exact and by type.
pub fn literals(database: &Path, select: &str) -> Vec<String> {
    let conn = rusqlite::Connection::open(database).unwrap();
    conn.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    literals_of(&conn, select)
}

/// Like [`literals`], on a connection.
pub fn literals_of(conn: &rusqlite::Connection, select: &str) -> Vec<String> {
    let mut statement = conn.prepare_cached(select).unwrap();
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let values: Vec<Value> = (0..columns).map(|at| dockmaster::store::sqlite::value_of(row.get_ref(at).unwrap())).collect();
        found.push(literal(&values));
    }
    found.sort();
    found
}

/// Returns a row as [`literals`] spells it.
pub fn literal(row: &[Value]) -> String {
    row.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ")
}

/// Plants the defect of `DOCKMASTER_DEFECT` into this process: what a harness of `defects` calls first if it uses the library itself.
#[cfg(debug_assertions)]
pub fn plant_defect() {
    if let Ok(name) = std::env::var("DOCKMASTER_DEFECT") {
        dockmaster::base::defect::plant(&name);
    }
}

/// Release builds have no defects; asked for one they say so.
#[cfg(not(debug_assertions))]
pub fn plant_defect() {
    assert!(std::env::var_os("DOCKMASTER_DEFECT").is_none(), "only debug builds have defects");
}

/// An address that stays the service's: its port is none that connections are given by chance, and not by any seed, so that two runs at
/// once do not meet.
pub fn quiet_address() -> String {
    loop {
        let address = format!("127.0.0.1:{}", fastrand::u16(20_000..30_000));
        if std::net::TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}
