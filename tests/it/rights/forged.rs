//! Units as a rogue node would make them: whatever it sends, nothing that it may not touch changes, and it is told why.

use super::*;
use dockmaster::base::ids::{ContentHash, FileNo};
use dockmaster::store::merge::{MergeDatabase, MergeJob, Merged};
use dockmaster::store::merge_units::StoredFile;
use fastrand::Rng;

const UNITS: usize = 10_000;
/// Units that go all the way through the Merger.
const MERGED_UNITS: usize = 10_000;
/// The kind of forgery that the Merger takes apart: values of unknown columns go to the conflict list, the rest of the unit is judged.
const UNKNOWN_COLUMN: &str = "a column that the node does not have";

/// Names of tables that no node may write to.
const TABLE_NAMES: &[&str] = &[
    "dock_node",
    "dock_meta",
    "DOCK_TXN_LOG",
    "dock_definition",
    "dock_unit",
    "dock_owner",
    "dock_node_attribute",
    "dock_nonsense",
    "sqlite_master",
    "sqlite_schema",
    "SQLITE_SEQUENCE",
    "sqlite_stat1",
    "everything",
    "employee",
    "audit",
    "price",
    "nowhere",
    "",
    "orders; DROP TABLE orders",
    "x\"; DROP TABLE orders; --",
    "main.orders",
    "\"orders\"",
    "orders\0",
    "'orders'",
    "[orders]",
    "temp.orders",
    "orders--",
];
/// Names of columns that no node has.
const COLUMN_NAMES: &[&str] =
    &["secret", "rowid", "_rowid_", "oid", "x\" = 1; DROP TABLE orders; --", "id\"", "*", "", "orders.note", "note\0", "nоte"];

struct Rogue<'a> {
    place: &'a Place,
    rng: Rng,
}

impl Rogue<'_> {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(0..of.len())].clone()
    }

    /// Something that ANNA may do.
    fn honest(&mut self, number: i64) -> Change {
        let place = self.place;
        match self.rng.u32(0..5) {
            0 => place.insert("orders", &[int(10_000 + number), int(2), int(1), int(number), text("h"), Value::Null]),
            1 => place.update("orders", &[int(10)], &[("amount", int(self.rng.i64(0..1_000)))]),
            2 => place.insert("line", &[int(12), int(100 + number), text("h")]),
            3 => place.insert("memo", &[text(&format!("h{number}")), int(1), text("h")]),
            _ => place.insert("expense", &[text(&format!("h{number}")), int(1)]),
        }
    }

    /// Something that she may not, of some kind.
    fn forged(&mut self, number: i64) -> (&'static str, Change) {
        let place = self.place;
        let foreign = self.pick(&[11, 13]);
        match self.rng.u32(0..14) {
            0 => ("update of an order of another", place.update("orders", &[int(foreign)], &[("amount", int(0))])),
            1 => ("delete of an order of another", place.delete("orders", &[int(foreign)])),
            2 => ("taking an order", place.update("orders", &[int(foreign)], &[("employee_id", int(1)), ("note", text("mine"))])),
            3 => ("a line of an order of another", place.insert("line", &[int(foreign), int(50 + number), text("f")])),
            4 => match self.rng.bool() {
                true => ("a line of another", place.update("line", &[int(11), int(1)], &[("what", text("f"))])),
                false => ("moving a line to an order of another", place.update("line", &[int(10), int(1)], &[("order_id", int(foreign))])),
            },
            5 => ("a shared customer", place.update("customer", &[int(self.rng.i64(1..4))], &[("credit", int(1_000_000))])),
            6 => ("delete of a shared customer, which cascades", place.delete("customer", &[int(self.rng.i64(1..4))])),
            7 => ("a delete that cascades into what no node gets", place.delete("orders", &[int(14)])),
            8 => ("an order for another", place.insert("orders", &[int(20_000 + number), int(1), int(2), int(1), text("f"), Value::Null])),
            9 => {
                let change = match self.rng.u32(0..3) {
                    0 => place.update("memo", &[text("m2")], &[("owner", int(1))]),
                    1 => place.delete("expense", &[text("e0")]),
                    _ => place.insert("team_member", &[int(2), int(1)]),
                };
                ("a memo, an expense or a team of another", change)
            }
            10 | 11 => {
                let heading = TableHeading { name: self.pick(TABLE_NAMES).to_owned(), ..(*place.heading("orders")).clone() };
                ("a table that is not the node's", self.any_change(heading))
            }
            12 => {
                let mut heading = (*place.heading("orders")).clone();
                let at = self.rng.usize(1..heading.columns.len());
                heading.columns[at] = self.pick(COLUMN_NAMES).to_owned();
                (UNKNOWN_COLUMN, self.any_change(heading))
            }
            _ => {
                let mut heading = (*place.heading("orders")).clone();
                heading.key = self.pick(&[vec![], vec![1], vec![0, 0], vec![999], vec![0, 1]]);
                ("another key", self.any_change(heading))
            }
        }
    }

    fn any_change(&mut self, heading: TableHeading) -> Change {
        // Of hers none: what stays of such a unit without the forged name would be right.
        let id = self.pick(&[9, 11, 13, 15]);
        let mut row: Row = vec![int(id), int(1), int(1), int(1), text("f"), int(1)];
        row.truncate(heading.columns.len());
        let key = vec![int(id); heading.key.len()];
        let field = |column| FieldChange { column, before: int(100), base: int(100), after: int(1) };
        let change = match self.rng.u32(0..3) {
            0 => RowChange::Insert { row },
            1 => RowChange::Delete { key, before: row.clone(), base: Some(row) },
            _ => RowChange::Update { key, fields: (1..heading.columns.len().min(3)).map(|at| field(at as u16)).collect(), whole: None },
        };
        (Arc::new(heading), change)
    }
}

/// Everything that ANNA must not be able to change, as one text.
fn untouchable(place: &Place) -> Vec<Vec<Row>> {
    [
        "SELECT * FROM orders WHERE employee_id IS NOT 1 OR id = 14",
        "SELECT * FROM line WHERE order_id NOT IN (SELECT id FROM orders WHERE employee_id = 1)",
        "SELECT * FROM customer",
        "SELECT * FROM audit",
        "SELECT * FROM employee",
        "SELECT * FROM price",
        "SELECT * FROM memo WHERE id = 'm2'",
        "SELECT * FROM expense WHERE id = 'e0'",
        "SELECT * FROM team_member",
        "SELECT * FROM dock_node",
        "SELECT * FROM dock_node_attribute",
        "SELECT * FROM dock_meta",
        "SELECT revision, text FROM dock_definition",
        "SELECT type, name, sql FROM sqlite_schema ORDER BY name",
    ]
    .iter()
    .map(|sql| place.rows(sql))
    .collect()
}

#[test]
fn t2_t12_t13_of_10000_forged_units_none_is_accepted_and_each_is_told_why() {
    let place = Place::new();
    let expected = untouchable(&place);
    let mut rogue = Rogue { place: &place, rng: Rng::with_seed(4711) };
    let mut refused: BTreeMap<&'static str, BTreeMap<String, usize>> = BTreeMap::new();
    let mut alerts = 0;
    for number in 0..UNITS {
        let (kind, forged) = rogue.forged(number as i64);
        let mut changes = Vec::new();
        for _ in 0..rogue.rng.usize(0..3) {
            changes.push(rogue.honest(number as i64));
        }
        changes.insert(rogue.rng.usize(0..=changes.len()), forged);
        // It may say of any place of the log that it was there.
        let end = place.end();
        let applied = rogue.pick(&[TxnId(0), TxnId(1), end, TxnId(end.0 / 2), TxnId(end.0 + 5), TxnId(i64::MAX)]);
        let unit = unit_at(applied, changes);
        match place.merge(&place.anna, &unit) {
            Ok(rights) => panic!("unit {number}, {kind}: accepted as {rights:?}\n{unit:?}"),
            Err(said) => {
                assert!(!said.reason().is_empty(), "{kind}");
                assert!(!matches!(said, Refused::Constraint(_)), "{kind} met a constraint only: {}", said.reason());
                alerts += usize::from(matches!(&said, Refused::Before(refusal) if refusal.alert));
                let words: String = said.reason().chars().filter(|character| !character.is_ascii_digit()).take(40).collect();
                *refused.entry(kind).or_default().entry(words).or_default() += 1;
            }
        }
        if number % 100 == 0 {
            assert_eq!(untouchable(&place), expected, "after unit {number}, {kind}");
            // An honest one between them passes.
            let unit = place.unit(vec![rogue.honest(-1 - number as i64)]);
            place.merge(&place.anna, &unit).unwrap_or_else(|said| panic!("honest: {said:?} {unit:?}"));
        }
    }
    assert_eq!(untouchable(&place), expected);
    assert!(refused.len() >= 14, "{refused:#?}");
    assert!(alerts > UNITS / 2, "{alerts} alerts");
}

#[test]
fn t2_t12_t13_forged_units_do_no_harm_through_the_merger_and_honest_ones_between_them_pass() {
    crate::harness::plant_defect();
    let place = Place::new();
    let expected = untouchable(&place);
    let mut merger = MergeDatabase::open(place.db.path()).unwrap().unwrap();
    let mut rogue = Rogue { place: &place, rng: Rng::with_seed(815) };
    let (mut held, mut alerts, mut honest) = (0, 0, 0);
    for number in 0..MERGED_UNITS {
        let is_honest = number.is_multiple_of(20);
        let mut kind = "honest";
        let mut changes: Vec<Change> = (0..rogue.rng.usize(0..3)).map(|at| rogue.honest((number * 10 + at) as i64)).collect();
        // A unit names a row once; the file would be refused otherwise.
        changes.truncate(1);
        if is_honest {
            changes = vec![rogue.honest(number as i64 * 10)];
        } else {
            let forged;
            (kind, forged) = rogue.forged(number as i64);
            changes.insert(rogue.rng.usize(0..=changes.len()), forged);
        }
        let mut unit = place.unit(changes);
        unit.head.number = UnitNo(number as u64 + 1);
        let (install, incarnation, file) = (InstallId([1; 16]), place.anna.incarnation, FileNo(number as u64 + 1));
        let units = vec![(unit.head.clone(), ContentHash::default())];
        let stored = StoredFile { node: place.anna.name.clone(), incarnation, file, install, hash: ContentHash::default(), units };
        merger.register(&stored, 1).unwrap();
        let job = MergeJob {
            node: &place.anna,
            install,
            incarnation,
            file,
            file_hash: ContentHash::default(),
            unit: &unit,
            held: &[],
            day: 20_000,
            now_micros: 1,
        };
        match merger.merge(&job).unwrap() {
            Merged::Finished { .. } if is_honest => honest += 1,
            Merged::Finished { .. } => assert_eq!(kind, UNKNOWN_COLUMN, "unit {number} was accepted: {unit:?}"),
            Merged::Held { reason, alert, .. } => {
                assert!(!is_honest && !reason.is_empty(), "unit {number}, {kind}: {reason}");
                held += 1;
                alerts += usize::from(alert);
            }
            Merged::NotWaiting => panic!("unit {number}, {kind}: not waiting"),
        }
        if number % 50 == 0 {
            assert_eq!(untouchable(&place), expected, "after unit {number}, {kind}");
        }
    }
    assert_eq!(untouchable(&place), expected);
    assert!(honest == MERGED_UNITS / 20 && held > MERGED_UNITS * 3 / 4 && alerts > MERGED_UNITS / 3, "{honest} {held} {alerts}");
}
