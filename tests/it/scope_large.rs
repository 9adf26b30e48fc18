//! Fault 36, R7: a unit taken in chunks of any size comes to the same net events as one that is held in memory, event by event; and to
//! the same data store. Random worlds against the oracle, as in `scope`.
//!
//! `SCOPE_SEED=<definition>:<seed>` replays one run, `SCOPE_SEEDS=<n>` sets how many there are.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::oracle_random::Random;
use super::oracle_router::{Fault, Router};
use super::oracle_schemas::{Subject, crm, ships};
use super::scope::{commit, fill, folder, input, node_keys, same_counts, text};
use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, ServerId, TxnId};
use dockmaster::cds::Cds;
use dockmaster::cds::unit::UnitInput;
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::txnproc_reader::TxnprocReader;
use dockmaster::dx::writer::TxnprocWriter;
use dockmaster::model::event::{KeyIndex, NodeEvent, ScopeKey, UnitEvents};
use dockmaster::model::value::{Row, RowKey};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::Path;

const UNITS: usize = 40;
const SEEDS: u64 = 12;

fn header(unit: i64) -> Header {
    Header {
        direction: DxDirection::Txnproc,
        server_id: ServerId([7; 16]),
        epoch: Epoch(1),
        node: None,
        incarnation: Incarnation(0),
        file_no: FileNo(unit.unsigned_abs()),
        first: TxnId(unit),
        last: TxnId(unit),
        revision: dockmaster::base::ids::Revision(1),
        previous: ContentHash::default(),
        install_id: InstallId::default(),
        applied_unit: TxnId(0),
    }
}

/// Takes a unit in by chunks; it stays open until commit or rollback.
fn in_chunks(cds: &mut Cds, input: &UnitInput, scratch: &Path, rng: &mut fastrand::Rng) -> UnitEvents {
    cds.bound_reached(rng.usize(0..3));
    cds.begin_large(scratch).unwrap();
    let mut changes = input.changes.clone();
    // In any order: a successor under an equal key may come before the row that it takes the place of.
    rng.shuffle(&mut changes);
    while !changes.is_empty() {
        let rest = changes.split_off(rng.usize(1..=3).min(changes.len()));
        cds.take(&changes).unwrap();
        changes = rest;
    }
    let mut bytes = Vec::new();
    let mut writer = TxnprocWriter::begin(&header(input.unit.0), 1, &mut bytes).unwrap();
    let summary = cds.finish_large(input, &[], &mut writer).unwrap();
    writer.finish().unwrap();
    assert!(!scratch.exists(), "the scratch file goes with the unit");
    let mut reader = TxnprocReader::open(Cursor::new(bytes)).unwrap();
    let events = reader.units().next().unwrap().unwrap();
    assert_eq!((summary.rows, &summary.nodes), (events.rows.len() as u64, &events.nodes));
    events
}

type Keys = BTreeSet<ScopeKey>;
/// By table and key: the row, what changed, keys before and after.
type Rows = BTreeMap<(String, RowKey), (Option<Row>, Vec<u16>, Keys, Keys)>;

/// What a unit says, whatever the numbers of its keys and tables.
fn meaning(events: &UnitEvents) -> (Vec<String>, Rows) {
    let names = |keys: &[KeyIndex]| -> Keys { keys.iter().map(|key| events.keys[*key as usize].clone()).collect() };
    let nodes = events.nodes.iter().map(|event| match event {
        NodeEvent::Start { node, incarnation, keys } => format!("start {node} {incarnation} {:?}", names(keys)),
        NodeEvent::Restart { node, incarnation, keys } => format!("restart {node} {incarnation} {:?}", names(keys)),
        NodeEvent::Keys { node, gained, lost } => format!("keys {node} {:?} {:?}", names(gained), names(lost)),
        NodeEvent::Stop { node } => format!("stop {node}"),
    });
    let head = format!("{} {} {} {:?}", events.unit, events.revision, events.day, events.whole_schema);
    let rows = events.rows.iter().map(|row| {
        let table = events.tables[row.table as usize].name.clone();
        ((table, row.key.clone()), (row.row.clone(), row.changed.clone(), names(&row.keys_before), names(&row.keys_after)))
    });
    (nodes.chain([head]).collect(), rows.collect())
}

fn run(subject: &Subject, seed: u64) -> Result<(), String> {
    let folder = folder();
    let (small_path, large_path, scratch) = (folder.path().join("small.db"), folder.path().join("large.db"), folder.path().join("scratch"));
    let subject = subject.varied(seed);
    let mut random = Random::new(&subject, seed);
    let mut chunks = fastrand::Rng::with_seed(seed);
    let (mut small, mut large) = (fill(&small_path, &random.world), fill(&large_path, &random.world));
    let mut router = Router::new(Fault::None);
    for (name, keys) in node_keys(&mut small, &random.world)? {
        router.start(&name, keys, random.world.view(&name));
    }
    for unit in 0..UNITS {
        let steps = random.unit();
        let views = random.world.views();
        let number = unit as i64 + 1;
        let input = input(number, &steps, Fault::None);
        let expected = small.process(&input).map_err(|error| format!("unit {unit}: {error:?}"))?;
        let mut events = in_chunks(&mut large, &input, &scratch, &mut chunks);
        if chunks.u32(0..6) == 0 {
            large.rollback().map_err(|error| error.to_string())?;
            events = in_chunks(&mut large, &input, &scratch, &mut chunks);
        }
        if meaning(&events) != meaning(&expected) {
            return Err(format!("unit {unit}: {:?} instead of {:?}\n{}", meaning(&events), meaning(&expected), text(&steps)));
        }
        if !events.rows.is_sorted_by(|one, other| (one.table, &one.key) < (other.table, &other.key)) {
            return Err(format!("unit {unit}: events are not in the order of tables and keys"));
        }
        commit(&mut small, number);
        commit(&mut large, number);
        router.route(&events, &views).map_err(|error| format!("unit {unit}: {error}\n{}\n{events:?}", text(&steps)))?;
        router.compare(&views).map_err(|error| format!("unit {unit}: {error}\n{}", text(&steps)))?;
    }
    same_counts(&large, &large_path, &small_path)
}

#[test]
fn f36_r7_chunks_of_a_unit_come_to_the_same_events() {
    let subjects = [("crm", crm()), ("ships", ships())];
    if let Ok(replay) = std::env::var("SCOPE_SEED") {
        let (name, seed) = replay.split_once(':').unwrap();
        let (_, subject) = subjects.iter().find(|(known, _)| *known == name).unwrap();
        return run(subject, seed.parse().unwrap()).unwrap();
    }
    let seeds = std::env::var("SCOPE_SEEDS").map_or(SEEDS, |text| text.parse().unwrap());
    for (name, subject) in &subjects {
        for seed in 0..seeds {
            if let Err(error) = run(subject, seed) {
                panic!("SCOPE_SEED={name}:{seed}: {error}");
            }
        }
    }
}

/// A unit that reaches more than memory may hold is given up before anything is kept of it, and goes by chunks.
#[test]
fn f36_a_unit_that_reaches_too_much_is_taken_as_a_large_one() {
    let subject = crm();
    let folder = folder();
    let path = folder.path().join("cds.db");
    let mut random = Random::new(&subject, 3);
    let mut cds = fill(&path, &random.world);
    cds.bound_reached(0);
    let mut given_up = 0;
    for number in 1..60 {
        let input = input(number, &random.unit(), Fault::None);
        match cds.process(&input) {
            Ok(_) => {}
            Err(dockmaster::cds::CdsError::TooMuch) => {
                given_up += 1;
                in_chunks(&mut cds, &input, &folder.path().join("scratch"), &mut random.rng.clone());
                cds.bound_reached(0);
            }
            Err(error) => panic!("{error}"),
        }
        commit(&mut cds, number);
    }
    assert!(given_up > 5, "{given_up}");
    let fresh = folder.path().join("fresh.db");
    drop(fill(&fresh, &random.world));
    same_counts(&cds, &path, &fresh).unwrap();
}
