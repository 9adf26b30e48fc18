//! Fault 19: a local database that is restored from an older copy, with and without its folder.

use super::Rig;
use super::rules::outbox;
use dockmaster::base::ids::{ContentHash, FileNo, Incarnation, UnitNo};
use dockmaster::dx::upload_reader::UploadReader;
use dockmaster::session::upload::UploadState;
use dockmaster::store::local::LocalDatabase;
use std::fs;
use std::path::PathBuf;

const ITEMS: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 0)";

/// A node whose unit 1 is in file 1, which the server has.
fn node() -> Rig {
    let rig = Rig::new(ITEMS);
    rig.app.execute("UPDATE dock_state SET install_id = ?1", ["cd".repeat(16)]).unwrap();
    change(&rig, 1);
    send(&rig, 1);
    rig
}

fn change(rig: &Rig, value: u32) {
    rig.run(&format!("INSERT INTO t(v) VALUES ({value})"));
    assert_eq!(rig.local.cut().unwrap().units.len(), 1);
}

/// Sends the next file; the server has it then. Returns its hash.
fn send(rig: &Rig, file: u64) -> ContentHash {
    let outbox = outbox(rig);
    let ready = outbox.next(FileNo(file - 1)).unwrap().unwrap();
    assert_eq!(ready.row.file, FileNo(file));
    outbox.stored(FileNo(file)).unwrap();
    ready.written.content_hash
}

fn sent_file(rig: &Rig, file: u64) -> Vec<u8> {
    let folder = dockmaster::client::folder::ClientFolder::of(&rig.path);
    fs::read(folder.outbox().join(FileNo(file).file_name())).unwrap()
}

fn copy(rig: &Rig) -> PathBuf {
    let to = rig.path.with_extension("copy");
    rig.app.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
    to
}

/// Puts the copy in the database's place.
fn restore(rig: &mut Rig, copy: &PathBuf) {
    // Nobody has it open while it is replaced.
    rig.app = rusqlite::Connection::open_in_memory().unwrap();
    rig.local = LocalDatabase::open(copy).unwrap();
    for suffix in ["-wal", "-shm"] {
        let mut name = rig.path.clone().into_os_string();
        name.push(suffix);
        let _gone = fs::remove_file(name);
    }
    fs::copy(copy, &rig.path).unwrap();
    rig.local = LocalDatabase::open(&rig.path).unwrap();
    rig.app = rusqlite::Connection::open(&rig.path).unwrap();
}

/// What a server says that names no unit.
pub(super) fn known(stored: u64, hash: ContentHash, last_unit: u64) -> UploadState {
    UploadState { stored: FileNo(stored), hash, last_unit: UnitNo(last_unit), ..UploadState::default() }
}

fn units(rig: &Rig) -> Vec<u64> {
    rig.local.pending_units().unwrap().iter().map(|unit| unit.head.number.0).collect()
}

#[test]
fn f19_units_that_were_cut_before_the_first_contact_get_numbers_that_the_server_does_not_know() {
    let mut rig = node();
    let copied = copy(&rig);
    change(&rig, 2);
    let hash = send(&rig, 2);
    restore(&mut rig, &copied);
    change(&rig, 30);
    change(&rig, 40);
    assert_eq!(units(&rig), [1, 2, 3], "2 is the number of another unit on the server");
    let said = outbox(&rig).agree(&known(2, hash, 2)).unwrap().unwrap();
    assert!(said.contains("older copy") && said.contains("2 units that were not sent have new numbers, above 2"), "{said}");
    assert_eq!(units(&rig), [1, 3, 4]);
    assert_eq!(rig.local.pending_unit(UnitNo(3)).unwrap().unwrap().changes.len(), 1);
    assert_eq!(outbox(&rig).agree(&known(2, hash, 2)).unwrap(), None, "once");
    let ready = outbox(&rig).next(FileNo(2)).unwrap().unwrap();
    assert_eq!((ready.row.file, ready.row.first, ready.row.last), (FileNo(3), UnitNo(1), UnitNo(4)));
    change(&rig, 50);
    assert_eq!(units(&rig), [1, 3, 4, 5]);
}

#[test]
fn f19_r16_a_unit_that_was_sent_after_the_copy_was_made_keeps_its_number_as_the_files_or_the_server_tell() {
    for (is_folder_lost, server_tells) in [(false, false), (true, false), (true, true)] {
        let mut rig = node();
        change(&rig, 2);
        let copied = copy(&rig);
        change(&rig, 3);
        let hash = send(&rig, 2);
        let mut file = UploadReader::open(std::io::Cursor::new(sent_file(&rig, 2))).unwrap();
        let sent = file.units().map(Result::unwrap).map(|unit| (unit.head.number, unit.content_hash().unwrap()));
        let units_named: Vec<_> = sent.filter(|_| server_tells).collect();
        restore(&mut rig, &copied);
        change(&rig, 30);
        if is_folder_lost {
            let folder = dockmaster::client::folder::ClientFolder::of(&rig.path);
            fs::remove_file(folder.outbox().join(FileNo(2).file_name())).unwrap();
        }
        outbox(&rig).agree(&UploadState { units: units_named, ..known(2, hash, 3) }).unwrap().unwrap();
        // If nobody can tell, a confirm of another unit must not take ours out.
        assert_eq!(units(&rig), if is_folder_lost && !server_tells { [1, 4, 5] } else { [1, 2, 4] });
    }
}

#[test]
fn f19_r16_what_was_sent_keeps_its_number_in_a_stream_that_begins_anew() {
    let mut rig = node();
    rig.local.begin_anew(Incarnation(2)).unwrap();
    assert_eq!(outbox(&rig).agree(&known(0, ContentHash::default(), 1)).unwrap(), None);
    assert_eq!(units(&rig), [1]);
    // The same with a copy: what was cut since then moves, though no file of the new stream tells of it.
    let copied = copy(&rig);
    restore(&mut rig, &copied);
    change(&rig, 20);
    let said = outbox(&rig).agree(&known(0, ContentHash::default(), 5)).unwrap().unwrap();
    assert!(said.contains("above 5"), "{said}");
    assert_eq!(units(&rig), [1, 6]);
}
