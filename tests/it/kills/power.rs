//! Power cuts on real file systems (faults 3, 4 and 5): ext4 on loop devices is shut down in the middle of a busy run, so that
//! what was not flushed, names in folders included, is gone; server, nodes, or both. Then the journal is played, everything
//! starts again, and the judge looks at all that was sent and held.
//!
//! A commit that an application made without flushing may be lost with the cut. What a node was sent may not (I7): it would be
//! held against a history that no longer has it.
//!
//! It needs root, loop devices, `mkfs.ext4`, `mount` and `python3` (for the one ioctl), and says so loudly where it is skipped.

use super::history::Entry;
use super::town::{Town, WATCHING};
use super::workload::{Workload, log_end};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long the cuts go on, without `DOCKMASTER_CUTS`.
const TIME: Duration = Duration::from_secs(20);

/// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: nothing more reaches the disk, not even the journal.
const SHUTDOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A file system of our own.
struct FileSystem {
    image: PathBuf,
    mount: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())) }
}

impl FileSystem {
    fn new(image: PathBuf, mount: PathBuf) -> Result<FileSystem, String> {
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        // Sparse; below low water the service would pause.
        file.set_len(2 << 30).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
        let system = FileSystem { image, mount };
        system.mount()?;
        Ok(system)
    }

    fn mount(&self) -> Result<(), String> {
        std::fs::create_dir_all(&self.mount).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.mount.to_str().unwrap()])
    }

    fn cut(&self) {
        run("python3", &["-c", SHUTDOWN, self.mount.to_str().unwrap()]).unwrap();
    }

    /// Takes it off, once nobody uses it.
    fn unmount(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(error) = run("umount", &[self.mount.to_str().unwrap()]) {
            assert!(Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", self.mount.to_str().unwrap()]);
    }
}

/// The file system of the server, with the folder of the site in it, and that of the nodes within; or why there are none.
fn file_systems(images: &Path) -> Result<(FileSystem, tempfile::TempDir, FileSystem), String> {
    run("python3", &["--version"])?;
    let server = FileSystem::new(images.join("server.img"), images.join("server"))?;
    let site = tempfile::TempDir::new_in(&server.mount).map_err(|error| error.to_string())?;
    let nodes = FileSystem::new(images.join("nodes.img"), site.path().join("nodes"))?;
    Ok((server, site, nodes))
}

#[test]
fn f3_f4_f5_power_cuts_on_real_file_systems_lose_and_double_nothing() {
    // In memory where there is room: the cut takes what was not flushed just the same.
    let images = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (server, site, nodes) = match file_systems(images.path()) {
        Ok(systems) => systems,
        Err(why) => return println!("SKIPPED: power cuts need root, loop devices, mkfs.ext4 and python3: {why}"),
    };
    let seed = crate::harness::number("DOCKMASTER_SEED").unwrap_or_else(crate::harness::seed);
    let wanted = crate::harness::number("DOCKMASTER_CUTS");
    println!("DOCKMASTER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut town = Town::new(site, "nodes/");
    let (began, mut cuts, mut history) = (Instant::now(), [0u64; 3], Vec::new());
    while wanted.map_or(began.elapsed() < TIME, |wanted| cuts.iter().sum::<u64>() < wanted) {
        let workload = Workload::begin(town.folder(), seed.wrapping_add(cuts.iter().sum()), false);
        town.kill_service(None);
        (0..WATCHING.len()).for_each(|which| town.kill_watching(which));
        std::thread::sleep(Duration::from_millis(random.u64(50..500)));
        let which = random.usize(0..3);
        if which != 0 {
            nodes.cut();
        }
        if which != 1 {
            server.cut();
        }
        let (committed, failed) = workload.end_whatever_failed();
        assert!(failed.is_ok() || which != 1, "the server kept its power: {failed:?}");
        town.kill_all();
        nodes.unmount();
        server.unmount();
        server.mount().unwrap();
        nodes.mount().unwrap();
        history.extend(committed);
        // What an application committed without flushing may be gone.
        let end = log_end(town.folder());
        history.retain(|entry: &Entry| entry.upto <= end);
        crate::crm::NODES.iter().for_each(|(node, _)| town.look_at(node));
        cuts[which] += 1;
    }
    town.quiesce();
    let compared = town.judge(&history);
    println!(
        "cuts: server {}, nodes {}, both {}; {} transactions stayed, {compared} comparisons",
        cuts[0],
        cuts[1],
        cuts[2],
        history.len()
    );
    assert!(compared > 50, "{compared}");
    drop((town, nodes));
}

#[test]
fn r13_f3_what_was_cut_is_there_after_a_power_cut_though_programs_flush_nothing() {
    let images = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let system = run("python3", &["--version"]).and_then(|()| FileSystem::new(images.path().join("node.img"), images.path().join("node")));
    let system = match system {
        Ok(system) => system,
        Err(why) => return println!("SKIPPED: power cuts need root, loop devices, mkfs.ext4 and python3: {why}"),
    };
    let rig = crate::cut::Rig::new_in(tempfile::TempDir::new_in(&system.mount).unwrap(), "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let path = rig.path.clone();
    run("sync", &[]).unwrap();
    let (mut rig, mut lost) = (Some(rig), 0);
    for round in 1..=5 {
        let app = rusqlite::Connection::open(&path).unwrap();
        app.execute_batch(&format!("PRAGMA synchronous = OFF; INSERT INTO t VALUES ({round}, 'flushed by the cut')")).unwrap();
        run(env!("CARGO_BIN_EXE_remote-sync"), &["pending", path.to_str().unwrap()]).unwrap();
        app.execute_batch(&format!("INSERT INTO t VALUES (100 + {round}, 'flushed by nobody')")).unwrap();
        system.cut();
        drop(app);
        // Its folder stays: nothing can be removed any more.
        if let Some(rig) = rig.take() {
            rig.keep();
        }
        system.unmount();
        system.mount().unwrap();
        let app = rusqlite::Connection::open(&path).unwrap();
        let count = |sql: &str| app.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let units =
            format!("SELECT count(*) FROM dock_unit AS u JOIN dock_change AS c USING (unit) WHERE key_text = '{round}' AND op = 'insert'");
        assert_eq!((count(&units), count(&format!("SELECT count(*) FROM t WHERE id = {round}"))), (1, 1), "round {round}");
        lost += 1 - count(&format!("SELECT count(*) FROM t WHERE id = 100 + {round}"));
    }
    assert!(lost > 0, "the power was never cut");
}
