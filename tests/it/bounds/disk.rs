//! Full disks (fault 7, scenario D10), on real small file systems: the service pauses and goes on by itself, a node's sync ends
//! with 3 and the next one goes on. Mounting takes rights that not everybody has; then these tests say so and do nothing.

use crate::crm::serve_again;
use crate::harness::{Site, literals};
use rusqlite::Connection;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A file system of its own, gone when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, options: &str) -> Option<Small> {
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        if done.as_ref().is_ok_and(|done| done.status.success()) {
            return Some(Small(at.to_owned()));
        }
        eprintln!("SKIPPED: no small file system can be mounted here ({done:?}); fault 7 is not tested");
        None
    }

    fn free(&self) -> u64 {
        dockmaster::base::space::free(&self.0).unwrap().bytes
    }

    /// Writes a file that leaves so many bytes.
    fn fill(&self, leave: u64) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.0.join("filler")).unwrap();
        while self.free() > leave {
            let part = (self.free() - leave).min(64 << 10) as usize;
            if file.write_all(&vec![1; part]).is_err() {
                break;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn site(server: &str) -> Site {
    let definition = "version = 1\n[node]\nowner = { type = \"integer\" }\n[object.item]\nvisible = 'everyone'\n";
    let schema = |path: &Path| {
        Connection::open(path).unwrap().execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER, data)").unwrap();
    };
    let site = Site::new(schema, definition);
    let mut file = std::fs::OpenOptions::new().append(true).open(site.path("dockmaster.toml")).unwrap();
    file.write_all(server.as_bytes()).unwrap();
    site
}

/// Inserts rows of 64 KiB that cannot be compressed.
fn insert(site: &Site, rows: usize) {
    let hq = Connection::open(site.path("hq.db")).unwrap();
    hq.busy_timeout(Duration::from_secs(20)).unwrap();
    hq.execute_batch("BEGIN").unwrap();
    for _ in 0..rows {
        hq.execute("INSERT INTO item(owner, data) VALUES(1, randomblob(65536))", []).unwrap();
    }
    hq.execute_batch("COMMIT").unwrap();
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(90), "not within 90 s: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn status(site: &Site) -> (Option<i32>, String) {
    let status = site.dockmaster(&["status"]);
    (status.status.code(), String::from_utf8_lossy(&status.stdout).into_owned())
}

/// Rows of the node, after as many syncs as it takes.
fn equal(site: &Site, local: &str) {
    let all = "SELECT id, owner, data FROM item";
    until("the node has every row", || {
        site.remote_sync_ok(&["sync", local]);
        literals(&site.path(local), all) == literals(&site.path("hq.db"), all)
    });
}

#[test]
fn fault7_d10_below_low_water_routing_pauses_acknowledgements_and_administration_go_on_and_it_resumes_by_itself() {
    let mut site = site("min_free_mb = 4\n");
    let Some(small) = Small::mount(&site.path("docking"), "size=16m") else { return };
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "owner=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    insert(&site, 2);
    equal(&site, "anna.db");
    until("a reserve is set aside", || site.path("docking/reserve").exists());

    small.fill(2 * MIB);
    insert(&site, 3);
    until("status tells", || status(&site).1.contains("no space left"));
    let (code, text) = status(&site);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("routing paused, nothing lost") && text.contains("biggest: ANNA outbox"), "{text}");
    let waiting = literals(&site.path("docking/ledger.db"), "SELECT position FROM router");
    // The node calls and is acknowledged, the administrator works, even with nothing left at all.
    site.remote_sync_ok(&["sync", "anna.db"]);
    small.fill(0);
    until("the reserve is given up", || !site.path("docking/reserve").exists());
    site.remote_sync_ok(&["sync", "anna.db"]);
    site.dockmaster_ok(&["node", "add", "BERT", "--set", "owner=2"]);
    assert_eq!(literals(&site.path("docking/ledger.db"), "SELECT position FROM router"), waiting, "routing is paused");

    small.make_room();
    equal(&site, "anna.db");
    let (code, text) = status(&site);
    assert_eq!(code, Some(0), "{text}");
    until("the reserve is set aside again", || site.path("docking/reserve").exists());
    site.stop();
    // From cron it is the same: try again later.
    small.fill(2 * MIB);
    let run = site.dockmaster(&["run"]);
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(3), "{said}");
    assert!(said.contains("no space left"), "{said}");
    small.make_room();
    site.dockmaster_ok(&["run"]);
}

/// The low-water mark does not help against one unit that is larger than what is left: the write fails in the middle.
#[test]
fn fault7_a_disk_that_is_full_in_the_middle_of_a_round_loses_nothing() {
    let mut site = site("min_free_mb = 0\n");
    let Some(small) = Small::mount(&site.path("docking"), "size=24m") else { return };
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "owner=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    for leave in [2 * MIB, 4 * MIB, MIB / 2] {
        small.fill(leave);
        insert(&site, 24);
        // It has tried, and failed, at least once.
        until("the disk is full", || small.free() < MIB || site.dockmaster(&["status"]).status.code() == Some(0));
        std::thread::sleep(Duration::from_millis(1_500));
        assert!(site.is_running(), "the service stays up");
        small.make_room();
        equal(&site, "anna.db");
        Connection::open(site.path("hq.db")).unwrap().execute_batch("DELETE FROM item").unwrap();
        equal(&site, "anna.db");
    }
    site.stop();
}

#[test]
fn fault7_no_file_may_be_made_any_more_pauses_and_resumes_likewise() {
    let mut site = site("min_free_mb = 1\n");
    let Some(small) = Small::mount(&site.path("docking"), "size=16m,nr_inodes=400") else { return };
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "owner=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    let names = small.0.join("filler");
    std::fs::create_dir(&names).unwrap();
    let mut made = 0;
    while std::fs::File::create(names.join(made.to_string())).is_ok() {
        made += 1;
    }
    assert!(made > 100, "{made}");
    insert(&site, 1);
    until("status tells", || status(&site).1.contains("no space left"));
    std::fs::remove_dir_all(&names).unwrap();
    equal(&site, "anna.db");
    site.stop();
}

#[test]
fn fault7_a_full_disk_at_the_node_ends_with_3_and_the_next_sync_goes_on() {
    let mut site = site("");
    let Some(small) = Small::mount(&site.path("small"), "size=16m") else { return };
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "owner=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "small/anna.db"]);
    insert(&site, 1);
    equal(&site, "small/anna.db");
    // Too little for the file; then enough for the file and too little for the rows.
    for leave in [MIB, 5 * MIB] {
        small.fill(leave);
        insert(&site, 48);
        let sync = site.remote_sync(&["sync", "small/anna.db"]);
        let said = String::from_utf8_lossy(&sync.stderr).into_owned();
        assert_eq!(sync.status.code(), Some(3), "{said}");
        assert!(said.contains("make room"), "{said}");
        small.make_room();
        let _ = serve_again;
        equal(&site, "small/anna.db");
        Connection::open(site.path("hq.db")).unwrap().execute_batch("DELETE FROM item").unwrap();
        equal(&site, "small/anna.db");
        Connection::open(site.path("small/anna.db")).unwrap().execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    }
    site.stop();
}
