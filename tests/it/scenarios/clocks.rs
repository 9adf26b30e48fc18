//! Clocks that lie (fault 11, I6): the real programs under libfaketime, whose clock jumps while they run, and windows at the
//! moment when a day begins (H3).

use crate::crm::{self, equal, in_step, local, routed, server_sql};
use crate::harness::{Program, Site, interrupt, literals};
use crate::session::support::until;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

/// The library that fakes the time; Debian's package is `libfaketime`.
fn library() -> Option<PathBuf> {
    let folders = ["/usr/lib", "/usr/local/lib"].into_iter().flat_map(|top| {
        let below = std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path().join("faketime"));
        below.chain([Path::new(top).join("faketime")]).collect::<Vec<_>>()
    });
    folders.map(|folder| folder.join("libfaketime.so.1")).find(|library| library.exists())
}

/// Gives a program the time that a file says; the file may change while it runs.
pub(crate) fn by_clock<'c>(command: &'c mut Command, library: &Path, clock: &Path) -> &'c mut Command {
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", clock)
        .env("FAKETIME_NO_CACHE", "1")
        // How long something waited is no matter of the wall clock.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("TZ", "UTC")
}

pub(crate) fn set(clock: &Path, time: &str) {
    // Replaced as a whole: the library may read it at any moment.
    let new = clock.with_extension("new");
    std::fs::write(&new, time).unwrap();
    std::fs::rename(&new, clock).unwrap();
}

/// The library must be seen to work, or the test proves nothing.
pub(crate) fn checked_library(site: &Site) -> Option<PathBuf> {
    let library = library()?;
    let clock = site.path("clock");
    set(&clock, "2031-05-06 07:08:09");
    let output = by_clock(&mut Command::new("date"), &library, &clock).arg("+%Y-%m-%d").output().ok()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "2031-05-06", "{output:?}");
    Some(library)
}

#[test]
fn f11_clocks_that_jump_by_four_hundred_days_while_programs_run_change_no_order_and_lose_nothing() {
    let mut site = crm::running(&ALL);
    site.stop();
    let Some(library) = checked_library(&site) else { return println!("SKIPPED: libfaketime is not installed") };
    let (server, node) = (site.path("server.clock"), site.path("node.clock"));
    set(&server, "+0");
    set(&node, "+0");
    let mut serve = site.command(Program::Dockmaster, &["serve"]);
    by_clock(&mut serve, &library, &server);
    crm::serve_again_as(&mut site, serve);
    let mut watch = site.command(Program::RemoteSync, &["watch", "anna.db"]);
    by_clock(&mut watch, &library, &node);
    let watching = watch.stdout(Stdio::null()).spawn().unwrap();
    let jumps = [("+400d", "+0"), ("+400d", "-400d"), ("-400d", "+400d"), ("-1h", "+1h"), ("+0", "-400d"), ("+0", "+0")];
    for (turn, (of_server, of_node)) in jumps.into_iter().enumerate() {
        set(&server, of_server);
        set(&node, of_node);
        for part in 0..3 {
            server_sql(
                &site,
                &format!("UPDATE opportunity SET name = 'turn {turn}.{part}', position_id = 4 + (id + {turn}) % 3 WHERE id % 3 = {part}"),
            );
        }
        routed(&site);
        // A session that was open when the clocks jumped, and new ones.
        let wanted = || crm::differences(&site, "anna.db", 4).is_empty();
        until("the watching node follows", wanted);
        for name in ["BERT", "CORA"] {
            let mut sync = site.command(Program::RemoteSync, &["sync", &local(name)]);
            let output = by_clock(&mut sync, &library, &node).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        equal(&site, &ALL);
    }
    interrupt(watching);
    in_step(&site, &ALL);
    site.stop();
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0), "nobody has to do anything");
}

/// Rows stay for one day after their date; at `day_starts` a row leaves, not before and not at another midnight.
#[test]
fn h3_a_window_moves_when_its_day_begins_and_at_no_other_midnight() {
    for (starts, stays, leaves) in [
        ("00:00", "2026-03-10 23:59:50", "2026-03-11 00:00:10"),
        ("03:00", "2026-03-11 02:59:50", "2026-03-11 03:00:10"),
        ("23:30", "2026-03-11 23:29:50", "2026-03-11 23:30:10"),
    ] {
        let sql = "CREATE TABLE visit(id INTEGER PRIMARY KEY, due TEXT);
                   INSERT INTO visit VALUES(1, '2026-03-09'), (2, '2026-03-10'), (3, '2026-03-11'), (4, NULL), (5, '2026-03-07')";
        let definition =
            "version = 1\n[node]\nnr = { type = \"integer\" }\n[object.visit]\nvisible = 'everyone'\nwindow = 'due within 1 days'\n";
        let site = Site::new(|path| crm::sql_on(path, sql), definition);
        let toml = std::fs::read_to_string(site.path("dockmaster.toml")).unwrap();
        std::fs::write(site.path("dockmaster.toml"), format!("{toml}day_starts = \"{starts}\"\n")).unwrap();
        let Some(library) = checked_library(&site) else { return println!("SKIPPED: libfaketime is not installed") };
        let clock = site.path("clock");
        let at = |time: &str, arguments: &[&str]| {
            set(&clock, time);
            let output = by_clock(&mut site.command(Program::Dockmaster, arguments), &library, &clock).output().unwrap();
            assert!(output.status.success(), "{arguments:?} at {time}: {}", String::from_utf8_lossy(&output.stderr));
        };
        at(stays, &["deploy", "--yes"]);
        at(stays, &["node", "add", "A", "--set", "nr=1"]);
        at(stays, &["extract", "A", "--yes"]);
        at(stays, &["run"]);
        let extract = site.path("extract.db");
        let packed = std::fs::File::open(site.path("docking/A/outbox/extract-00000001.db.zst")).unwrap();
        zstd::stream::copy_decode(packed, std::fs::File::create(&extract).unwrap()).unwrap();
        assert_eq!(literals(&extract, "SELECT id FROM visit"), ["1", "2", "3", "4"], "{starts}");
        assert!(crm::dx_files(&site, "docking/A/outbox").is_empty(), "{starts}: the day has not begun");
        at(leaves, &["run"]);
        let files = crm::dx_files(&site, "docking/A/outbox");
        assert_eq!(files.len(), 1, "{starts}");
        let shown = crm::shown(&site, &files[0]).to_string();
        assert!(shown.contains("delete") && shown.contains("visit"), "{starts}: {shown}");
        at(leaves, &["run"]);
        assert_eq!(crm::dx_files(&site, "docking/A/outbox").len(), 1, "{starts}: a day begins once");
    }
}
