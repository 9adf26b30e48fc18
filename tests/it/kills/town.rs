//! A site whose processes are killed and started again at any moment.

use super::history::{Entry, Snapshot, judge, stream};
use crate::crm;
use crate::harness::{Program, Site, quiet_address};
use rusqlite::Connection;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// The longest life of a victim.
pub const LIFE_MAX_MS: u64 = 250;
/// Nodes that watch; the last of the three synchronises now and then, and fetches new extracts.
pub const WATCHING: [&str; 2] = ["ANNA", "BERT"];

/// A site whose processes come and go.
pub struct Town {
    site: Site,
    address: String,
    clients: &'static str,
    service: Option<Child>,
    watching: [Option<Child>; 2],
    snapshots: Vec<Snapshot>,
    /// The last of the three has to fetch an extract before it can go on.
    renewing: bool,
}

impl Town {
    /// Makes the site in a folder, with three nodes in step whose databases lie below `clients`, relative to it.
    pub fn new(folder: tempfile::TempDir, clients: &'static str) -> Town {
        let site = Site::new_in(folder, crm::database, crm::DEFINITION);
        let address = quiet_address();
        let path = site.path("dockmaster.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        // Few files are kept, so that the purge is at work as well.
        std::fs::write(&path, format!("{}keep_files = 150\n", text.replace("127.0.0.1:0", &address))).unwrap();
        site.dockmaster_ok(&["deploy", "--yes"]);
        for (node, employee) in crm::NODES {
            site.dockmaster_ok(&["node", "add", node, "--set", &format!("employee={employee}")]);
        }
        let mut town = Town { site, address, clients, service: None, watching: [None, None], snapshots: Vec::new(), renewing: false };
        town.serve();
        for (node, _) in crm::NODES {
            town.until_done(&["init", &town.address, "--token", &town.site.token(node), &town.local(node)]);
        }
        town
    }

    /// Returns the folder of the server.
    pub fn folder(&self) -> &Path {
        self.site.folder.path()
    }

    fn local(&self, node: &str) -> String {
        format!("{}{}", self.clients, crm::local(node))
    }

    fn start(&self, program: Program, arguments: &[&str]) -> Child {
        let mut command = self.site.command(program, arguments);
        // What is refused while the other side is dead is part of the game, so it is shown only where a program ended by itself.
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.site.path("programs.log")).unwrap();
        command.env("RUST_LOG", "error").stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Returns what the programs said last.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.site.path("programs.log")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn serve(&mut self) {
        self.service = Some(self.start(Program::Dockmaster, &["serve"]));
    }

    /// Runs the client until it succeeds: the service may still be starting.
    fn until_done(&self, arguments: &[&str]) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.site.remote_sync(arguments);
            match output.status.code() {
                Some(0) => return,
                Some(3) => assert!(Instant::now() < until, "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)),
                other => panic!("{arguments:?} ended with {other:?}: {}", String::from_utf8_lossy(&output.stderr)),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the service and starts it again; `lost` is lost with it: the data store, which is rebuilt.
    pub fn kill_service(&mut self, lost: Option<&str>) {
        if let Some(mut child) = self.service.take() {
            let ended = child.try_wait().unwrap();
            // It began while a definition was deployed: busy, try again.
            let is_busy = ended.and_then(|status| status.code()) == Some(3);
            assert!(ended.is_none() || is_busy, "the service ended by itself, {ended:?}:\n{}", self.last_words());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for suffix in ["", "-wal", "-shm"] {
            lost.into_iter().for_each(|name| drop(std::fs::remove_file(self.site.path(&format!("docking/{name}{suffix}")))));
        }
        self.serve();
    }

    /// Kills everything and starts nothing.
    pub fn kill_all(&mut self) {
        for mut child in self.service.take().into_iter().chain(self.watching.iter_mut().filter_map(Option::take)) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Kills a node that watches and starts it again.
    pub fn kill_watching(&mut self, which: usize) {
        if let Some(mut child) = self.watching[which].take() {
            assert!(child.try_wait().unwrap().is_none(), "{} stopped watching by itself:\n{}", WATCHING[which], self.last_words());
            child.kill().unwrap();
            child.wait().unwrap();
            self.look_at(WATCHING[which]);
        }
        self.watching[which] = Some(self.start(Program::RemoteSync, &["watch", &self.local(WATCHING[which])]));
    }

    /// Kills a sync, or an init that renews the extract, of the node that does not watch.
    pub fn kill_visit(&mut self, delay: Duration, renew: bool) {
        self.renewing |= renew;
        let (address, cora) = (self.address.clone(), self.local("CORA"));
        let mut child = if self.renewing {
            self.start(Program::RemoteSync, &["init", &address, "--token", &self.site.token("CORA"), "--replace", "--renew", &cora])
        } else {
            self.start(Program::RemoteSync, &["sync", &cora])
        };
        std::thread::sleep(delay);
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        match ended.and_then(|status| status.code()) {
            Some(0) => self.renewing = false,
            Some(3) | None => {}
            Some(other) => panic!("CORA (renewing: {}) ended with {other}:\n{}", self.renewing, self.last_words()),
        }
        self.look_at("CORA");
    }

    /// Notes what the local database of a dead program holds, and that its inbox holds the server's own files.
    pub fn look_at(&mut self, node: &'static str) {
        let conn = Connection::open(self.site.path(&self.local(node))).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        conn.execute_batch("BEGIN").unwrap();
        let unit: i64 = conn.query_row("SELECT applied_unit FROM dock_state", [], |row| row.get(0)).unwrap();
        self.snapshots.push(Snapshot { node, unit, held: crm::held(&conn) });
        if self.renewing {
            return; // Its inbox may be of the extract before.
        }
        for path in crm::dx_files(&self.site, &format!("{}.sync/inbox", self.local(node))) {
            let sent = self.site.path(&format!("docking/{node}/outbox")).join(path.file_name().unwrap());
            if let Ok(sent) = std::fs::read(&sent) {
                assert!(sent == std::fs::read(&path).unwrap(), "{} is not what was sent", path.display());
            }
        }
    }

    /// Lets everybody come to rest and end in peace, under a service that has just started.
    pub fn quiesce(&mut self) {
        self.kill_service(None);
        for child in self.watching.iter_mut().filter_map(Option::take) {
            crate::harness::interrupt(child);
        }
        if self.renewing {
            self.until_done(&["init", &self.address, "--token", &self.site.token("CORA"), "--replace", "--renew", &self.local("CORA")]);
        }
        self.until_done(&["sync", &self.local("CORA")]);
        crm::routed(&self.site);
        for (node, _) in crm::NODES {
            self.until_done(&["sync", &self.local(node)]);
            self.look_at(node);
        }
        crate::harness::interrupt(self.service.take().unwrap());
        let status = self.site.dockmaster(&["status"]);
        assert_eq!(status.status.code(), Some(0), "nobody has to do anything:\n{}", String::from_utf8_lossy(&status.stdout));
    }
}

impl Town {
    /// Judges all that was sent and all that was looked at; returns how many comparisons were made.
    pub fn judge(&self, history: &[Entry]) -> usize {
        let outbox = |node: &str| self.site.path(&format!("docking/{node}/outbox"));
        let streams: Vec<_> = crm::NODES.iter().map(|(node, _)| stream(node, &outbox(node))).collect();
        judge(history, &streams, &self.snapshots)
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        for child in self.service.iter_mut().chain(self.watching.iter_mut().flatten()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
