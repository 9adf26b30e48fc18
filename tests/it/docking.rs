//! The docking root: PUT, queues, quarantine, the lock, the ledger.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use dockmaster::base::disk::{Disk, DiskError};
use dockmaster::base::ids::{ByteHash, ContentHash, Epoch, FileNo, Incarnation, NodeName, Revision, ServerId, TxnId};
use dockmaster::base::quarantine::{Aside, put_aside};
use dockmaster::docking::error::DockingError;
use dockmaster::docking::ledger::{Ledger, NodeChange, OutboxFile, Round, RouterState};
use dockmaster::docking::queue::list;
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::model::event::ScopeKey;
use dockmaster::model::value::Value;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn node() -> NodeName {
    "SHOP-01".parse().unwrap()
}

fn root() -> (tempfile::TempDir, DockingRoot) {
    let folder = tempfile::tempdir().unwrap();
    let root = DockingRoot::open(&folder.path().join("docking"), Access::Exclusive).unwrap();
    root.ensure_node(&node()).unwrap();
    (folder, root)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn put_replaces_nothing_and_leaves_nothing_behind() {
    let (_folder, root) = root();
    let (tmp, outbox) = (root.tmp(&node()), root.outbox(&node()));
    let disk = root.disk();
    disk.put(&tmp, &outbox, "00000001.dx", b"first").unwrap();
    let error = disk.put(&tmp, &outbox, "00000001.dx", b"second").unwrap_err();
    assert!(matches!(&error, DiskError::Exists { path } if *path == root.outbox_file(&node(), FileNo(1))), "{error}");
    assert_eq!(std::fs::read(root.outbox_file(&node(), FileNo(1))).unwrap(), b"first");
    assert_eq!(names(&tmp), Vec::<String>::new());
    let mode = std::fs::metadata(root.outbox_file(&node(), FileNo(1))).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&outbox).unwrap().permissions().mode() & 0o777, 0o700);
    // The error names the operation and the path.
    let error = disk.put(&tmp.join("absent"), &outbox, "x", b"").unwrap_err();
    assert!(error.is_not_found() && error.to_string().starts_with("create ") && error.to_string().contains("/tmp/absent/x"), "{error}");
}

#[test]
fn a_group_of_many_files_in_many_folders() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new();
    let tmp = folder.path().join("tmp");
    disk.ensure_folder(&tmp).unwrap();
    let mut group = disk.group();
    for number in 0..400 {
        let target = folder.path().join(format!("N{}", number % 50));
        disk.ensure_folder(&target).unwrap();
        let length = group.add(&tmp, &target, &format!("{number}"), |out| out.write_all(&vec![7; number]).map(|()| number)).unwrap();
        assert_eq!(length, number);
    }
    assert_eq!(group.len(), 400);
    assert!(!folder.path().join("N0/0").exists(), "nothing is there before the commit");
    group.commit().unwrap();
    for number in 0..400 {
        assert_eq!(std::fs::read(folder.path().join(format!("N{}/{number}", number % 50))).unwrap().len(), number);
    }
    assert_eq!(names(&tmp).len(), 0);
}

#[test]
fn t11_links_are_not_followed() {
    let (folder, root) = root();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, b"canary").unwrap();
    let link = root.outbox_file(&node(), FileNo(1));
    symlink(&secret, &link).unwrap();
    assert!(matches!(root.disk().open(&link), Err(DiskError::NotAFile { .. })));
    assert!(matches!(root.disk().open(&root.outbox(&node())), Err(DiskError::NotAFile { .. })));
    let mut found = String::new();
    root.disk().open(&secret).unwrap().read_to_string(&mut found).unwrap();
    assert_eq!(found, "canary");
    // A link is no queue file, a put over it replaces nothing, cleaning removes the link and not its target.
    assert_eq!(list(&root.outbox(&node())).unwrap().foreign, ["00000001.dx"]);
    assert!(matches!(root.disk().put(&root.tmp(&node()), &root.outbox(&node()), "00000001.dx", b"x"), Err(DiskError::Exists { .. })));
    symlink(&secret, root.tmp(&node()).join("link")).unwrap();
    std::fs::write(root.tmp(&node()).join("rest"), b"").unwrap();
    assert_eq!(root.disk().clean_tmp(&root.tmp(&node())).unwrap(), 2);
    assert_eq!(std::fs::read(&secret).unwrap(), b"canary");
    // A folder of a node that is a link is refused.
    symlink(folder.path(), root.path().join("EVIL")).unwrap();
    assert!(root.ensure_node(&"EVIL".parse().unwrap()).is_err());
    assert_eq!(root.nodes().unwrap(), [node()]);
}

#[test]
fn fault18_only_numbers_are_queue_files() {
    let (_folder, root) = root();
    let outbox = root.outbox(&node());
    for name in ["00000010.dx", "00000002.dx", "123456789.dx", "2.dx", "00000003.dx.tmp", "extract-00000001.toc", "a\nb"] {
        std::fs::write(outbox.join(name), b"12").unwrap();
    }
    std::fs::create_dir(outbox.join("00000004.dx")).unwrap();
    let listing = list(&outbox).unwrap();
    let numbers: Vec<u64> = listing.files.iter().map(|file| file.file_no.0).collect();
    assert_eq!(numbers, [2, 10, 123_456_789]);
    assert!(listing.files.iter().all(|file| file.bytes == 2));
    assert_eq!(listing.foreign, ["00000003.dx.tmp", "00000004.dx", "2.dx", "a\nb", "extract-00000001.toc"]);
    assert_eq!(list(&outbox.join("absent")).unwrap(), Default::default());
}

#[test]
fn d3_quarantine_keeps_every_file_with_its_reason() {
    let (_folder, root) = root();
    let (inbox, tmp, folder) = (root.inbox(&node()), root.tmp(&node()), root.quarantine(&node()));
    for round in ["first", "second", "third"] {
        std::fs::write(inbox.join("00000001.dx"), round).unwrap();
        let (file, reason) = (inbox.join("00000001.dx"), format!("{round} reason"));
        let aside = Aside { file: &file, name: "00000001.dx", quarantine: &folder, tmp: &tmp, reason: &reason };
        put_aside(root.disk(), &aside).unwrap().unwrap();
        assert_eq!(names(&inbox).len(), 0);
    }
    assert_eq!(names(&folder).len(), 6);
    for (name, round) in [("00000001.dx", "first"), ("00000001.dx.1", "second"), ("00000001.dx.2", "third")] {
        assert_eq!(std::fs::read_to_string(folder.join(name)).unwrap(), round);
        assert_eq!(std::fs::read_to_string(folder.join(format!("{name}.reason"))).unwrap(), format!("{round} reason\n"));
    }
}

#[test]
fn fault29_a_root_in_use_names_its_holder() {
    crate::harness::plant_defect();
    let (_folder, root) = root();
    for access in [Access::Exclusive, Access::Shared] {
        let error = DockingRoot::open(root.path(), access).unwrap_err();
        assert!(matches!(error, DockingError::InUse { .. }));
        let message = error.to_string();
        assert!(message.contains(&format!("in use by process {} (it-", std::process::id())), "{message}");
        assert!(message.contains(") since 20"), "{message}");
    }
    // Looking needs no lock, and takes none.
    DockingRoot::open(root.path(), Access::Look).unwrap();
    let path = root.path().to_owned();
    drop(root);
    let shared = DockingRoot::open(&path, Access::Shared).unwrap();
    DockingRoot::open(&path, Access::Shared).unwrap();
    assert!(DockingRoot::open(&path, Access::Exclusive).is_err());
    drop(shared);
    DockingRoot::open(&path, Access::Exclusive).unwrap();
}

fn outbox_file(file_no: u64, last: i64) -> OutboxFile {
    OutboxFile {
        node: node(),
        incarnation: Incarnation(1),
        file_no: FileNo(file_no),
        first: TxnId(last - 9),
        last: TxnId(last),
        content_hash: ContentHash([file_no as u8; 32]),
        byte_hash: ByteHash([9; 32]),
        bytes: 1_000,
        operations: 3,
        created: "2026-11-22T00:00:00Z".to_owned(),
    }
}

fn round(position: i64, nodes: Vec<NodeChange>, files: Vec<OutboxFile>) -> Round {
    let state = RouterState {
        server_id: ServerId([7; 16]),
        epoch: Epoch(2),
        revision: Revision(3),
        position: TxnId(position),
        txnproc_file: FileNo(4),
        txnproc_hash: ContentHash([5; 32]),
    };
    Round { state, nodes, files }
}

#[test]
fn the_ledger_remembers_a_round_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let key = |value: Value| ScopeKey { path: "p".to_owned(), value };
    let all_keys = [Value::Null, Value::Integer(1), Value::Text(b"\xff\0".to_vec()), Value::Blob(b"\xff\0".to_vec())].map(key);
    assert!(Ledger::look(&path).unwrap().is_none() && !path.exists());
    let mut ledger = Ledger::create(&path).unwrap();
    assert_eq!(ledger.state().unwrap(), RouterState::default());
    let looking = Ledger::look(&path).unwrap().unwrap();
    let started = NodeChange::Started { node: node(), incarnation: Incarnation(1), unit: TxnId(10), keys: all_keys.to_vec() };
    let first = round(20, vec![started], vec![outbox_file(1, 20)]);
    ledger.commit(&first).unwrap();
    assert_eq!(looking.state().unwrap(), first.state);
    let mut looking = looking;
    looking.commit(&first).unwrap_err();
    drop(ledger);

    let mut ledger = Ledger::open(&path).unwrap();
    assert_eq!(ledger.state().unwrap(), first.state);
    let stream = ledger.stream(&node()).unwrap().unwrap();
    assert_eq!((stream.start_unit, stream.last_file, stream.last_unit, stream.active), (TxnId(10), FileNo(1), TxnId(20), true));
    assert_eq!(stream.last_hash, ContentHash([1; 32]));
    let keys = |ledger: &Ledger| {
        let mut keys = Vec::new();
        ledger.keys(|_, key| keys.push(key)).unwrap();
        keys.sort();
        keys
    };
    let mut expected = all_keys.to_vec();
    expected.sort();
    assert_eq!(keys(&ledger), expected);

    // A file that is there already takes the whole round back.
    let gained = NodeChange::Keys { node: node(), gained: vec![key(Value::Integer(2))], lost: vec![key(Value::Null)] };
    ledger.commit(&round(30, vec![gained.clone()], vec![outbox_file(1, 30)])).unwrap_err();
    assert_eq!((ledger.state().unwrap().position, keys(&ledger).len()), (TxnId(20), 4));
    ledger.commit(&round(30, vec![gained], vec![outbox_file(2, 30)])).unwrap();
    assert!(keys(&ledger).contains(&key(Value::Integer(2))) && !keys(&ledger).contains(&key(Value::Null)));

    let numbers = |after: u64, limit: usize| -> Vec<u64> {
        let files = ledger.files_after(&node(), Incarnation(1), FileNo(after), limit).unwrap();
        files.iter().map(|file| file.file_no.0).collect()
    };
    assert_eq!((numbers(0, 10), numbers(0, 1), numbers(1, 10), numbers(2, 10)), (vec![1, 2], vec![1], vec![2], vec![]));
    assert_eq!(ledger.files_after(&node(), Incarnation(1), FileNo(1), 9).unwrap(), [outbox_file(2, 30)]);

    ledger.commit(&round(40, vec![NodeChange::Stopped { node: node() }], vec![])).unwrap();
    assert!(!ledger.stream(&node()).unwrap().unwrap().active && keys(&ledger).is_empty());
    let again = NodeChange::Started { node: node(), incarnation: Incarnation(2), unit: TxnId(50), keys: vec![] };
    ledger.commit(&round(50, vec![again], vec![])).unwrap();
    let stream = &ledger.streams().unwrap()[0];
    assert_eq!((stream.incarnation, stream.last_file, stream.last_unit), (Incarnation(2), FileNo(0), TxnId(50)));
    assert!(ledger.files_after(&node(), Incarnation(1), FileNo(0), 9).unwrap().is_empty());
}

#[test]
fn a_ledger_of_a_newer_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    drop(Ledger::create(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let message = Ledger::open(&path).unwrap_err().to_string();
    assert_eq!(message, Ledger::look(&path).unwrap_err().to_string());
    assert!(message.ends_with("ledger.db: it has version 9, this program knows version 4"), "{message}");
}

#[test]
fn r26_whoever_opens_a_ledger_that_is_not_there_makes_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let message = Ledger::open(&path).unwrap_err().to_string();
    assert!(message.starts_with("there is no ledger ") && message.contains("ledger.db") && !path.exists(), "{message}");
    // What a crash left of one that was just being made is none either.
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(Ledger::open(&path), Err(DockingError::NoLedger { .. })));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    drop(Ledger::create(&path).unwrap());
    assert_eq!(Ledger::open(&path).unwrap().state().unwrap(), RouterState::default());
}
