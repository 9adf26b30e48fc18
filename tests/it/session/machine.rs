//! The state machines and the codec, fed with anything in any order: they never panic and never leave an end.

use super::support::{SERVER_ID, content_hash, name};
use bytes::Bytes;
use dockmaster::base::ids::*;
use dockmaster::model::node::{Node, NodeState};
use dockmaster::session::admission::{NodeFacts, ServerIdentity, Turned, admit};
use dockmaster::session::client::{self, ClientSession, Range, init_hello, plan};
use dockmaster::session::codec::{CodecError, decode, encode};
use dockmaster::session::message::*;
use dockmaster::session::server::{self, ServerSession};
use dockmaster::session::upload::{Refused, UploadFile, UploadMessage, UploadPart, UploadRefusal, UploadState};
use dockmaster::session::upload_server;
use std::collections::BTreeSet;

fn identity() -> ServerIdentity {
    ServerIdentity { server_id: SERVER_ID, name: "HQ".into(), epoch: Epoch(1), revision: Revision(3) }
}

fn node() -> Node {
    Node {
        name: name("A"),
        state: NodeState::Active,
        incarnation: Incarnation(1),
        extracted: Incarnation(1),
        model: None,
        attributes: Default::default(),
    }
}

fn hello(mode: Mode) -> Hello {
    Hello {
        server_id: Some(SERVER_ID),
        epoch: Epoch(1),
        incarnation: Incarnation(if mode == Mode::Init { 0 } else { 1 }),
        mode,
        ..init_hello("A", InstallId([1; 16]), None)
    }
}

fn welcome(mode: Mode) -> Welcome {
    let facts = NodeFacts { last_file: FileNo(4), ..NodeFacts::default() };
    admit(&hello(mode), &identity(), Some(&node()), &facts, 15).unwrap().welcome
}

fn offered(file: u64) -> OfferedFile {
    OfferedFile { file: FileNo(file), bytes: 10, byte_hash: ByteHash([1; 32]) }
}

fn extract(incarnation: u32) -> ExtractOffer {
    ExtractOffer { incarnation: Incarnation(incarnation), unit: TxnId(1), bytes: 10, raw_bytes: 20, sha256: ByteHash([2; 32]) }
}

/// Any message, with small numbers so that they often fit.
fn any_message(random: &mut fastrand::Rng) -> Message {
    let (file, request) = (FileNo(random.u64(0..6)), random.u32(0..5));
    let applied = AppliedTo { file, unit: TxnId(random.i64(0..9)), hash: content_hash(&[random.u8(0..2)]) };
    let mode = [Mode::Sync, Mode::Watch, Mode::Init][random.usize(0..3)];
    match random.u8(0..26) {
        0 => Message::Hello(Box::new(hello(mode))),
        1 => Message::Welcome(Box::new(welcome(mode))),
        2 => Message::Refused(Refusal::new(RefusalCode::from_number(random.u16(0..20)), "no")),
        3 => Message::Fetch { request, first: file, last: random.bool().then(|| FileNo(random.u64(0..6))), offset: random.u64(0..12) },
        4 => Message::Received { file },
        5 => Message::Applied(applied),
        6 => Message::RequestExtract { renew: random.bool() },
        7 => Message::FetchExtract { request, incarnation: Incarnation(random.u32(0..3)), offset: random.u64(0..12) },
        8 => Message::Ping(request),
        9 => Message::Pong(request),
        10 if random.u8(0..10) == 0 => Message::Bye("bye".into()),
        11 => Message::Offer((1..=random.u64(0..4)).map(offered).collect()),
        12 => Message::FileBegin { request, file: offered(file.0), offset: random.u64(0..12) },
        13 => Message::FileEnd { request, file },
        14 => Message::FetchEnd { request },
        15 => Message::FileUnavailable { request, file, why: Unavailable::Missing },
        16 => Message::ExtractOffer(extract(random.u32(0..3))),
        17 => Message::ExtractBegin { request, offset: random.u64(0..12) },
        18 => Message::ExtractEnd { request },
        19..24 => Message::Upload(any_upload(random)),
        _ => Message::Chunk { offset: random.u64(0..12), bytes: Bytes::from(vec![7; random.usize(0..12)]) },
    }
}

pub(super) fn upload_file(file: u64) -> UploadFile {
    UploadFile {
        file: FileNo(file),
        bytes: 10,
        byte_hash: ByteHash([1; 32]),
        content_hash: ContentHash([file as u8; 32]),
        first: UnitNo(file),
        last: UnitNo(file),
    }
}

/// Any message of the way up, with small numbers.
pub(super) fn any_upload(random: &mut fastrand::Rng) -> UploadMessage {
    let file = FileNo(random.u64(1..4));
    match random.u8(0..10) {
        0 => {
            let part = random.bool().then(|| UploadPart { bytes: random.u64(0..12), byte_hash: ByteHash([random.u8(0..3); 32]) });
            UploadMessage::State(UploadState {
                stored: FileNo(random.u64(0..3)),
                hash: ContentHash([1; 32]),
                last_unit: UnitNo(1),
                part,
                units: vec![(UnitNo(1), ContentHash([2; 32]))],
            })
        }
        1 => UploadMessage::Begin { file: upload_file(file.0), offset: if random.bool() { 0 } else { random.u64(0..11) } },
        2..5 => UploadMessage::Chunk { offset: random.u64(0..12), bytes: Bytes::from(vec![7; random.usize(1..12)]) },
        5 => UploadMessage::End { file },
        6 => UploadMessage::Stored { file },
        7 => {
            let code = UploadRefusal::from_number(random.u16(1..12));
            UploadMessage::Refused(Refused { file, code, text: "no".into() })
        }
        8 => [UploadMessage::Done, UploadMessage::AwaitMerged { seconds: random.u32(0..9) }][random.usize(0..2)].clone(),
        _ => UploadMessage::Awaited { merged: random.bool(), last_file: file },
    }
}

fn any_server_event(random: &mut fastrand::Rng) -> server::Event {
    use server::Event;
    match random.u8(0..26) {
        0..14 => Event::Message(any_message(random)),
        14 => Event::Judged(Box::new(admit(
            &hello(Mode::Watch),
            &identity(),
            Some(&node()),
            &NodeFacts { last_file: FileNo(4), ..NodeFacts::default() },
            15,
        ))),
        15 => Event::Files((random.u64(1..4)..5).map(offered).collect()),
        16 => Event::Opened { offset: random.u64(0..10) },
        17 => Event::Sent,
        18 => Event::Unreadable(Unavailable::Damaged),
        19 => Event::Routed,
        20 => Event::NodeNow(Some(Box::new(node()))),
        21 => Event::ExtractDecided(Box::new(Ok(random.bool()))),
        22 => Event::Started(Incarnation(1)),
        23 => Event::ExtractReady(extract(1)),
        24 => Event::Quiet,
        _ => [Event::Gone("x".into()), Event::Failed("x".into()), Event::NodeNow(None), Event::Judged(Box::new(Err(Turned::node("x"))))]
            [random.usize(0..4)]
        .clone(),
    }
}

/// An answer that fits the last question, so that runs get deep; now and then anything.
fn server_event(random: &mut fastrand::Rng, asked: Option<&server::Action>) -> server::Event {
    use server::{Action, Event};
    if random.u8(0..4) == 0 {
        return any_server_event(random);
    }
    match asked {
        Some(Action::Admit { hello, .. }) => Event::Judged(Box::new(admit(
            hello,
            &identity(),
            Some(&node()),
            &NodeFacts { last_file: FileNo(4), ..NodeFacts::default() },
            15,
        ))),
        Some(Action::ListFiles { after, limit }) => Event::Files((after.0 + 1..5).take(*limit).map(offered).collect()),
        Some(Action::ReadFile { offset, .. } | Action::ReadExtract { offset, .. }) => Event::Opened { offset: *offset },
        Some(Action::Upload(upload_server::UploadAction::Look)) => Event::Upload(upload_server::UploadEvent::Known(UploadState::default())),
        Some(Action::DecideExtract { .. }) => Event::ExtractDecided(Box::new(Ok(true))),
        Some(Action::StartNode) => Event::Started(Incarnation(1)),
        Some(Action::AwaitExtract(_)) => Event::ExtractReady(extract(1)),
        Some(Action::Send(Message::FileBegin { .. } | Message::ExtractBegin { .. })) => Event::Sent,
        _ => Event::Message(any_message(random)),
    }
}

#[test]
fn the_server_takes_anything_in_any_order_and_never_leaves_an_end() {
    let (mut refused, mut deep) = (0, BTreeSet::new());
    for seed in 0..20_000u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut session = ServerSession::new(identity());
        let mut asked = None;
        let mut ended = None;
        let first = server::Event::Message(Message::Hello(Box::new(hello([Mode::Sync, Mode::Watch, Mode::Init][seed as usize % 3]))));
        let mut next = (seed % 10 != 0).then_some(first);
        for _ in 0..60 {
            let event = next.take().unwrap_or_else(|| server_event(&mut random, asked.as_ref()));
            let actions = session.on(event.clone()).unwrap_or_else(|illegal| illegal.actions);
            deep.insert(session.state());
            let closes = actions.iter().filter(|action| matches!(action, server::Action::Close { .. })).count();
            if let Some(state) = ended {
                assert_eq!((session.state(), actions.len()), (state, 0), "seed {seed}: {event:?} woke an ended session");
            } else {
                assert_eq!(closes, usize::from(session.is_over()), "seed {seed}: {event:?} -> {actions:?}");
            }
            for action in &actions {
                // Nothing of a stream goes out before the node was accepted, and whatever goes out can be written.
                if let server::Action::Send(message) = action {
                    assert!(session.is_open() || matches!(message, Message::Refused(_)), "seed {seed}: {message:?} in {}", session.state());
                    assert_eq!(decode(&encode(message).unwrap()).unwrap(), *message);
                }
            }
            if session.is_over() && ended.is_none() {
                ended = Some(session.state());
                refused += u32::from(session.state() == "refused");
            }
            asked = actions
                .into_iter()
                .rev()
                .find(|action| !matches!(action, server::Action::NoteReceived(_) | server::Action::NoteApplied(_)));
        }
    }
    assert!(refused > 1_000, "{refused}");
    for state in
        ["idle", "listing", "begun", "sending", "waiting", "init-idle", "init-starting", "init-awaiting", "init-offered", "init-sending"]
    {
        assert!(deep.contains(state), "{state} was never reached: {deep:?}");
    }
}

#[test]
fn the_client_takes_anything_in_any_order_and_stores_only_what_continues() {
    use client::{Action, Event};
    let mut stored_in_all = 0u64;
    for seed in 0..20_000u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mode = [Mode::Sync, Mode::Watch, Mode::Init][seed as usize % 3];
        let mut session = ClientSession::new(hello(mode));
        let mut queue = vec![Event::Connected, Event::Message(Message::Welcome(Box::new(welcome(mode))))];
        if mode == Mode::Init {
            queue.extend([
                Event::AskExtract { renew: false },
                Event::Message(Message::ExtractOffer(extract(1))),
                Event::FetchExtract { offset: 0 },
            ]);
            queue.push(Event::Message(Message::ExtractBegin { request: 1, offset: 0 }));
        } else {
            queue.push(Event::Plan(plan(FileNo(0), &BTreeSet::new(), FileNo(4), mode, None)));
            queue.push(Event::Message(Message::FileBegin { request: 1, file: offered(1), offset: 0 }));
        }
        queue.truncate(random.usize(1..=queue.len()));
        queue.reverse();
        let (mut over, mut at, mut end) = (false, 0u64, 0u64);
        for _ in 0..60 {
            let event = queue.pop().unwrap_or_else(|| match random.u8(0..24) {
                0 => Event::Verified,
                1 => Event::Damaged,
                2 => Event::Durable(FileNo(random.u64(0..6))),
                3 => Event::Quiet,
                4 => Event::Plan(vec![Range { first: FileNo(1), last: Some(FileNo(2)), offset: 0 }]),
                5..12 => Event::Message(Message::Chunk { offset: at, bytes: Bytes::from(vec![1; random.usize(1..6)]) }),
                _ => Event::Message(any_message(&mut random)),
            });
            let actions = session.on(event.clone()).unwrap_or_else(|illegal| illegal.actions);
            assert!(!over || actions.is_empty(), "seed {seed}: {event:?} woke an ended session");
            for action in &actions {
                match action {
                    Action::BeginFile { offset, file } => (at, end) = (*offset, file.bytes),
                    Action::BeginExtract { offset } => (at, end) = (*offset, 10),
                    Action::Store { offset, bytes } => {
                        assert_eq!(*offset, at, "seed {seed}: a hole");
                        at += bytes.len() as u64;
                        assert!(at <= end, "seed {seed}: beyond the end");
                        stored_in_all += 1;
                    }
                    Action::FinishFile(_) | Action::FinishExtract(_) => assert_eq!(at, end, "seed {seed}: finished early"),
                    Action::Send(message) => assert_eq!(decode(&encode(message).unwrap()).unwrap(), *message),
                    _ => {}
                }
            }
            over |= session.is_over();
        }
    }
    assert!(stored_in_all > 1_000, "{stored_in_all}");
}

#[test]
fn what_is_missing_is_planned_gap_by_gap() {
    let files = |numbers: &[u64]| numbers.iter().copied().map(FileNo).collect::<BTreeSet<_>>();
    let range = |first, last: Option<u64>, offset| Range { first: FileNo(first), last: last.map(FileNo), offset };
    assert_eq!(plan(FileNo(0), &files(&[]), FileNo(0), Mode::Sync, None), vec![]);
    assert_eq!(plan(FileNo(2), &files(&[1, 2]), FileNo(5), Mode::Sync, Some((FileNo(3), 9))), vec![range(3, Some(5), 9)]);
    assert_eq!(
        plan(FileNo(1), &files(&[3, 6]), FileNo(7), Mode::Sync, Some((FileNo(4), 9))),
        vec![range(2, Some(2), 0), range(4, Some(5), 0), range(7, Some(7), 0)]
    );
    assert_eq!(plan(FileNo(1), &files(&[2]), FileNo(2), Mode::Watch, None), vec![range(3, None, 0)]);
    assert_eq!(plan(FileNo(1), &files(&[2]), FileNo(2), Mode::Sync, None), vec![]);
}

#[test]
fn t8_t21_every_message_has_one_spelling_and_nothing_else_is_taken() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut kinds = BTreeSet::new();
    for _ in 0..1_500 {
        let message = any_message(&mut random);
        kinds.insert(message.kind());
        let bytes = encode(&message).unwrap();
        assert_eq!(decode(&bytes).unwrap(), message);
        for cut in 0..bytes.len() {
            // A chunk or text cut short is a shorter one; everything else is refused.
            match decode(&bytes.slice(..cut)) {
                Ok(shorter) => {
                    assert!(
                        matches!(shorter, Message::Chunk { .. } | Message::Refused(_) | Message::Upload(UploadMessage::Chunk { .. }))
                            && encode(&shorter).unwrap().len() == cut
                    )
                }
                Err(_) => assert!(cut < bytes.len()),
            }
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(
            matches!(message, Message::Chunk { .. } | Message::Refused(_) | Message::Upload(UploadMessage::Chunk { .. }))
                || decode(&longer.into()).is_err(),
            "{message:?}"
        );
        let mut flipped = bytes.to_vec();
        flipped[random.usize(0..bytes.len())] ^= 1 << random.u8(0..8);
        if let Ok(other) = decode(&flipped.clone().into())
            && !matches!(other, Message::Ignored(_) | Message::Foreign(_))
        {
            assert_eq!(encode(&other).unwrap(), flipped, "two spellings of {other:?}");
        }
    }
    assert!(kinds.len() >= 28, "{kinds:?}");
    // A number in a longer spelling than needed.
    assert!(decode(&Bytes::from_static(&[0x04, 0, 251, 1, 0])).is_err());
    // An offer that claims 2^63 files.
    let mut bomb = kind::OFFER.to_le_bytes().to_vec();
    bomb.extend([253, 0, 0, 0, 0, 0, 0, 0, 0x80]);
    assert!(decode(&bomb.into()).is_err());
    assert!(matches!(decode(&Bytes::from_static(&[0x77, 0x77])), Err(CodecError::Kind(0x7777))));
    assert_eq!(decode(&Bytes::from_static(&[0x77, 0x87, 1, 2])).unwrap(), Message::Ignored(0x8777));
    for _ in 0..20_000 {
        let length = random.usize(0..40);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        let _any = decode(&noise.into());
    }
}
