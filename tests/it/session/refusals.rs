//! Files that are not taken, one by one by name, and nodes that send what they should not.

use super::support::{PlainDialer, SERVER_ID, Server, name, noise, timing, until};
use super::upload_kit::{INSTALL, Made, Recipe, chain, make, recipe, sender};
use dockmaster::base::ids::*;
use dockmaster::base::limits::{DX_FILE_BYTES_MAX, UPLOAD_CHUNK_BYTES};
use dockmaster::model::node::NodeState;
use dockmaster::session::client::init_hello;
use dockmaster::session::message::{AppliedTo, Hello, Message, Mode, RefusalCode, feature};
use dockmaster::session::upload::{UploadFile, UploadMessage, UploadRefusal, UploadState};
use dockmaster::store::upload_position::MergedTo;
use dockmaster::transport::link::Link;
use dockmaster::transport::peer::Dialer;
use std::fs;

const NODE: &str = "SHOP-01";

/// A node that says whatever the test wants.
struct Raw {
    runtime: tokio::runtime::Runtime,
    link: Link,
}

impl Raw {
    /// Calls, is let in, and returns what the server says of uploads.
    fn call(server: &Server, node: &str) -> (Raw, UploadState) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let link = runtime.block_on(PlainDialer.dial(&server.address.to_string(), timing())).unwrap();
        let mut raw = Raw { runtime, link };
        raw.send(Message::Hello(Box::new(Hello {
            server_id: Some(SERVER_ID),
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            applied: AppliedTo::default(),
            mode: Mode::Watch,
            features: vec![feature::UPLOAD],
            ..init_hello(node, INSTALL, None)
        })));
        assert!(matches!(raw.receive(), Some(Message::Welcome(welcome)) if welcome.features == vec![feature::UPLOAD]));
        match raw.receive() {
            Some(Message::Upload(UploadMessage::State(state))) => (raw, state),
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, message: Message) {
        self.runtime.block_on(self.link.outgoing.send(&message)).unwrap();
    }

    /// Returns the next message but pings; `None` at the end.
    fn receive(&mut self) -> Option<Message> {
        loop {
            match self.runtime.block_on(self.link.incoming.receive()) {
                Ok(Message::Ping(number)) => self.send(Message::Pong(number)),
                Ok(message) => return Some(message),
                Err(_) => return None,
            }
        }
    }

    fn begin(&mut self, file: UploadFile, offset: u64) {
        self.send(Message::Upload(UploadMessage::Begin { file, offset }));
    }

    fn bytes(&mut self, bytes: &[u8], from: usize) {
        for (number, piece) in bytes[from..].chunks(UPLOAD_CHUNK_BYTES).enumerate() {
            let offset = (from + number * UPLOAD_CHUNK_BYTES) as u64;
            self.send(Message::Upload(UploadMessage::Chunk { offset, bytes: piece.to_vec().into() }));
        }
    }

    fn end(&mut self, file: FileNo) {
        self.send(Message::Upload(UploadMessage::End { file }));
    }

    fn all(&mut self, made: &Made) -> Option<Message> {
        self.begin(made.file, 0);
        self.bytes(&made.bytes, 0);
        self.end(made.file.file);
        self.receive()
    }

    fn refused(&mut self) -> (UploadRefusal, String) {
        match self.receive() {
            Some(Message::Upload(UploadMessage::Refused(refused))) => (refused.code, refused.text),
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn served() -> Server {
    let server = Server::start();
    server.add_node(NODE);
    server
}

fn quarantined(server: &Server) -> usize {
    let folder = server.root().join(NODE).join("quarantine");
    fs::read_dir(folder).unwrap().filter(|entry| !entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".reason")).count()
}

/// Sends one file by an ordinary sync and returns why it was not taken. Downloads go on all the same.
fn not_taken(server: &Server, made: &Made) -> (UploadRefusal, String) {
    server.route(NODE, b"goes on");
    let (client, hand) = sender(NODE, server.address, std::slice::from_ref(made));
    let report = client.sync().unwrap();
    assert_eq!((report.files, report.sent.files, hand.lock().unwrap().stored), (1, 0, FileNo(0)));
    assert_eq!(server.stored(NODE), vec![]);
    let refused = report.sent.refused.unwrap();
    assert_eq!(refused.file, made.file.file);
    (refused.code, refused.text)
}

type Wrong = fn(&mut Recipe);

#[test]
fn t4_f17_a_file_that_is_not_the_nodes_own_is_refused_with_an_alert() {
    let wrongs: [(&str, Wrong); 7] = [
        ("node", |recipe| recipe.header.node = Some(name("SHOP-02"))),
        ("server", |recipe| recipe.header.server_id = ServerId([7; 16])),
        ("epoch", |recipe| recipe.header.epoch = Epoch(2)),
        ("incarnation", |recipe| recipe.header.incarnation = Incarnation(2)),
        ("file number", |recipe| recipe.header.file_no = FileNo(9)),
        ("local database", |recipe| recipe.header.install_id = InstallId([9; 16])),
        ("history", |recipe| recipe.header.previous = ContentHash([4; 32])),
    ];
    for (what, wrong) in wrongs {
        let server = served();
        server.add_node("SHOP-02");
        let mut recipe = recipe(NODE, 1, ContentHash::default());
        wrong(&mut recipe);
        let mut made = make(&recipe);
        made.file.file = FileNo(1);
        let (code, text) = not_taken(&server, &made);
        assert_eq!(code, if what == "history" { UploadRefusal::Fork } else { UploadRefusal::Foreign }, "{what}");
        assert!(text.contains("00000001.dx") && text.contains(if what == "history" { "fork" } else { what }), "{what}: {text}");
        assert!(server.alerts().iter().any(|alert| alert.contains(NODE)), "{what}: {:?}", server.alerts());
        assert_eq!((quarantined(&server), server.parts(NODE), server.stored("SHOP-02").len()), (1, 0, 0), "{what}");
    }
}

#[test]
fn f12_a_file_whose_bytes_are_not_right_is_sent_once_more_and_then_refused() {
    let good = make(&recipe(NODE, 1, ContentHash::default()));
    // The hash that was announced does not fit.
    let server = served();
    let mut made = good.clone();
    made.file.byte_hash = ByteHash([3; 32]);
    let (code, text) = not_taken(&server, &made);
    assert_eq!((code, quarantined(&server)), (UploadRefusal::Damaged, 2));
    assert!(text.contains("SHA-256"), "{text}");
    assert_eq!(server.alerts(), Vec::<String>::new());
    // It fits, but the file within is not whole.
    let server = served();
    let mut made = good.clone();
    let middle = made.bytes.len() / 2;
    made.bytes[middle] ^= 1;
    made.file.byte_hash = super::support::byte_hash(&made.bytes);
    assert_eq!(not_taken(&server, &made).0, UploadRefusal::Damaged);
    // It is whole, but another one than was announced.
    let server = served();
    let mut made = good;
    made.file.content_hash = ContentHash([8; 32]);
    let (code, text) = not_taken(&server, &made);
    assert_eq!(code, UploadRefusal::Damaged);
    assert!(text.contains("announced"), "{text}");
    // Anything else is no upload file at all.
    let server = served();
    let mut made = make(&recipe(NODE, 1, ContentHash::default()));
    made.bytes = noise(5, 4_000);
    (made.file.bytes, made.file.byte_hash) = (4_000, super::support::byte_hash(&made.bytes));
    assert_eq!(not_taken(&server, &made).0, UploadRefusal::Damaged);
}

#[test]
fn f19_another_file_under_a_known_number_is_a_fork_and_the_same_one_is_acknowledged_again() {
    let server = served();
    let files = chain(NODE, &[100, 200]);
    let (mut raw, state) = Raw::call(&server, NODE);
    assert_eq!(state, UploadState::default());
    for made in &files {
        assert_eq!(raw.all(made), Some(Message::Upload(UploadMessage::Stored { file: made.file.file })));
    }
    // Again, in any order: acknowledged at the first message of each.
    for made in [&files[1], &files[0], &files[1]] {
        assert_eq!(raw.all(made), Some(Message::Upload(UploadMessage::Stored { file: made.file.file })));
    }
    server.expect_stored(NODE, &files, "duplicates");
    let other = make(&Recipe { seed: 77, ..recipe(NODE, 1, ContentHash::default()) });
    raw.begin(other.file, 0);
    raw.bytes(&other.bytes, 0);
    raw.end(FileNo(1));
    let (code, text) = raw.refused();
    assert_eq!(code, UploadRefusal::Fork);
    assert!(text.contains("00000001.dx") && text.contains("units 1 to 1"), "{text}");
    assert!(server.alerts().iter().any(|alert| alert.contains("fork")));
    server.expect_stored(NODE, &files, "fork");
    // It is refused alone: the next one is taken.
    let next = make(&recipe(NODE, 3, files[1].file.content_hash));
    assert_eq!(raw.all(&next), Some(Message::Upload(UploadMessage::Stored { file: FileNo(3) })));
}

#[test]
fn f13_f14_a_gap_is_named_and_asked_for_from_its_first_file() {
    let server = served();
    let files = chain(NODE, &[100, 200, 300]);
    let (mut raw, _) = Raw::call(&server, NODE);
    assert!(raw.all(&files[0]).is_some());
    raw.begin(files[2].file, 0);
    raw.bytes(&files[2].bytes, 0);
    raw.end(FileNo(3));
    let (code, text) = raw.refused();
    assert_eq!((code, text.as_str()), (UploadRefusal::OutOfOrder, "00000002.dx is missing: send from 00000002.dx on"));
    // In order they are taken.
    for made in &files[1..] {
        assert_eq!(raw.all(made), Some(Message::Upload(UploadMessage::Stored { file: made.file.file })));
    }
    server.expect_stored(NODE, &files, "reordered");
    drop(raw);
    // Files lost in the inbox are named too, and those behind the gap are not sent again.
    fs::remove_file(server.inbox(NODE).join("00000001.dx")).unwrap();
    fs::remove_file(server.inbox(NODE).join("00000002.dx")).unwrap();
    until("the first session is over", || server.sessions().sessions(None, 1).unwrap()[0].ended.is_some());
    let (mut raw, state) = Raw::call(&server, NODE);
    assert_eq!((state.stored, state.last_unit), (FileNo(0), UnitNo(3)));
    for made in &files {
        raw.begin(made.file, 0);
        if made.file.file < FileNo(3) {
            raw.bytes(&made.bytes, 0);
            raw.end(made.file.file);
        }
        assert_eq!(raw.receive(), Some(Message::Upload(UploadMessage::Stored { file: made.file.file })));
    }
    server.expect_stored(NODE, &files, "gap");
}

#[test]
fn t8_limits_come_before_anything_is_taken() {
    let server = served();
    let (mut raw, _) = Raw::call(&server, NODE);
    let mut file = make(&recipe(NODE, 1, ContentHash::default())).file;
    file.bytes = DX_FILE_BYTES_MAX + 1;
    raw.begin(file, 0);
    let (code, text) = raw.refused();
    assert_eq!(code, UploadRefusal::TooLarge);
    assert!(text.contains("are allowed"), "{text}");
    assert_eq!(server.parts(NODE), 0);
    // A frame longer than a chunk ends the line, though the node was let in.
    let long = Message::Chunk { offset: 0, bytes: vec![0; UPLOAD_CHUNK_BYTES + 100].into() };
    raw.send(long);
    assert!(matches!(raw.receive(), None | Some(Message::Refused(_))));
    // More bytes than were announced break the protocol.
    let made = make(&recipe(NODE, 1, ContentHash::default()));
    until("the former session is over", || server.sessions().sessions(None, 1).unwrap()[0].ended.is_some());
    let (mut raw, _) = Raw::call(&server, NODE);
    raw.begin(made.file, 0);
    raw.bytes(&made.bytes, 0);
    raw.bytes(&[1, 2, 3], 0);
    assert!(matches!(raw.receive(), Some(Message::Refused(refusal)) if refusal.code == RefusalCode::Violation));
    assert_eq!(server.stored(NODE), vec![]);
}

#[test]
fn fault7_low_disk_pauses_uploads_alone_and_says_so() {
    let server = Server::start_with(|options| options.min_free_bytes = u64::MAX);
    server.add_node(NODE);
    let (code, text) = not_taken(&server, &make(&recipe(NODE, 1, ContentHash::default())));
    assert_eq!(code, UploadRefusal::LowDisk);
    assert!(code.is_passing() && text.contains("nothing lost"), "{text}");
    assert_eq!((server.parts(NODE), server.alerts()), (0, vec![]));
}

#[test]
fn f54_a_node_that_is_disabled_while_it_sends_is_cut_off_and_nothing_of_it_is_taken() {
    let server = served();
    let made = make(&Recipe { length: 100_000, ..recipe(NODE, 1, ContentHash::default()) });
    // Before its last byte: cut off.
    let (mut raw, _) = Raw::call(&server, NODE);
    raw.begin(made.file, 0);
    server.set_node(NODE, NodeState::Disabled, 1);
    assert!(matches!(raw.receive(), Some(Message::Refused(refusal)) if refusal.code == RefusalCode::Node));
    assert_eq!(server.stored(NODE), vec![]);
    // With its last byte: the file is looked at, and not taken.
    let server = served();
    let (mut raw, _) = Raw::call(&server, NODE);
    raw.begin(made.file, 0);
    raw.bytes(&made.bytes, 0);
    server.set_node(NODE, NodeState::Disabled, 1);
    raw.end(FileNo(1));
    match raw.receive() {
        Some(Message::Upload(UploadMessage::Refused(refused))) => assert_eq!(refused.code, UploadRefusal::Disabled),
        Some(Message::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Node),
        other => panic!("{other:?}"),
    }
    until("not taken", || server.sessions().sessions(None, 1).unwrap()[0].ended.is_some());
    assert_eq!(server.stored(NODE), vec![]);
}

#[test]
fn mi17_files_of_the_former_extract_are_merged_before_new_ones_take_their_numbers() {
    let server = served();
    let old = chain(NODE, &[100]);
    let (mut raw, _) = Raw::call(&server, NODE);
    assert!(raw.all(&old[0]).is_some());
    drop(raw);
    server.set_node(NODE, NodeState::Active, 2);
    let mut next = recipe(NODE, 1, ContentHash::default());
    next.header.incarnation = Incarnation(2);
    next.seed = 50;
    let new = make(&next);
    let (client, _) = sender(NODE, server.address, std::slice::from_ref(&new));
    client.change(|position| position.incarnation = Incarnation(2));
    until("the former session is over", || server.sessions().sessions(None, 1).unwrap()[0].ended.is_some());
    let report = client.sync().unwrap();
    assert_eq!(report.sent.refused.as_ref().map(|refused| refused.code), Some(UploadRefusal::Waiting));
    server.expect_stored(NODE, &old, "not merged yet");
    // Once it is merged, the Merger takes it away.
    let merged = MergedTo { incarnation: Incarnation(1), file: FileNo(1), hash: old[0].file.content_hash };
    server.facts.merged.lock().unwrap().insert(name(NODE), merged);
    client.sync().unwrap();
    server.expect_stored(NODE, std::slice::from_ref(&new), "merged");
}

#[test]
fn a_part_is_gone_on_with_only_where_the_server_said_so() {
    let server = served();
    let made = make(&Recipe { length: 200_000, ..recipe(NODE, 1, ContentHash::default()) });
    let (mut raw, _) = Raw::call(&server, NODE);
    raw.begin(made.file, 0);
    raw.bytes(&made.bytes[..70_000], 0);
    until("the part", || {
        fs::read_dir(server.root().join(NODE).join("tmp")).unwrap().any(|entry| entry.unwrap().metadata().unwrap().len() == 70_000)
    });
    drop(raw);
    until("the former session is over", || server.sessions().sessions(None, 1).unwrap()[0].ended.is_some());
    let (mut raw, state) = Raw::call(&server, NODE);
    let part = state.part.unwrap();
    assert_eq!((part.bytes, part.byte_hash), (70_000, made.file.byte_hash));
    raw.begin(made.file, 70_000);
    raw.bytes(&made.bytes, 70_000);
    raw.end(FileNo(1));
    assert_eq!(raw.receive(), Some(Message::Upload(UploadMessage::Stored { file: FileNo(1) })));
    server.expect_stored(NODE, std::slice::from_ref(&made), "gone on with");
    // An offset that nobody offered.
    let next = make(&Recipe { length: 5_000, ..recipe(NODE, 2, made.file.content_hash) });
    raw.begin(next.file, 100);
    assert!(matches!(raw.receive(), Some(Message::Refused(refusal)) if refusal.code == RefusalCode::Violation));
}
