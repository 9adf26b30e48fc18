//! Keys that SQLite gave on several databases at once (R12).

use super::{Change, Yard, int};
use dockmaster::base::ids::{TxnId, UnitNo};
use dockmaster::model::upload::{FieldChange, KeyMapping, Outcome, RowChange, UploadUnit};
use dockmaster::model::value::Value;
use std::collections::BTreeMap;

const NOTES: &str = "
CREATE TABLE note(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES note(id), text TEXT);
CREATE TABLE tag(note_id INTEGER NOT NULL REFERENCES note(id), name TEXT NOT NULL, seen INTEGER, PRIMARY KEY(note_id, name));
INSERT INTO note VALUES (1, NULL, 'root');
";

fn notes() -> Yard {
    Yard::new(NOTES, "version = 1\n[object.note]\nvisible.all = 'everyone'\n[object.tag]\nvisible.all = 'everyone'\n")
}

fn keys(outcome: Outcome) -> Vec<(i64, i64)> {
    let Outcome::Merged { keys, .. } = outcome else { panic!("{outcome:?}") };
    let pair = |KeyMapping { old, new, .. }: &KeyMapping| match (&old[..], &new[..]) {
        ([Value::Integer(old)], [Value::Integer(new)]) => (*old, *new),
        other => panic!("{other:?}"),
    };
    keys.iter().map(pair).collect()
}

fn note(yard: &Yard, id: i64, parent: i64, text: &str) -> Change {
    yard.insert("note", &[int(id), int(parent), text.into()])
}

#[test]
fn r12_f6_x33_a_taken_key_is_replaced_with_its_references_in_this_unit_and_in_later_ones() {
    let mut yard = notes();
    let cut_at = yard.server().log_end().unwrap();
    let bert = vec![note(&yard, 2, 1, "bert")];
    yard.merged("BERT", bert);
    // Anna was away: her note 2 is another one, with a child below it, and equal rows are two rows.
    let changes = vec![note(&yard, 2, 1, "bert"), note(&yard, 3, 2, "child"), yard.insert("tag", &[int(2), "x".into(), int(0)])];
    let first = yard.unit_at("ANNA", cut_at, changes);
    let field = |column, before: Value, after: Value| FieldChange { column, base: before.clone(), before, after };
    let later = vec![
        (yard.heading("note"), RowChange::Update { key: vec![int(2)], fields: vec![field(2, "bert".into(), "mine".into())], whole: None }),
        (yard.heading("tag"), RowChange::Update { key: vec![int(2), "x".into()], fields: vec![field(2, int(0), int(9))], whole: None }),
        note(&yard, 4, 2, "grandchild"),
    ];
    let second = yard.unit_at("ANNA", cut_at, later);
    yard.send("ANNA", &[first, second]);
    assert_eq!(yard.merge(), 2);
    assert_eq!(yard.statuses(), "ANNA1 finished ANNA2 finished BERT1 finished");
    assert_eq!(yard.text("SELECT * FROM note ORDER BY id"), "1|NULL|'root' 2|1|'bert' 3|4|'child' 4|1|'mine' 5|4|'grandchild'");
    assert_eq!(yard.text("SELECT * FROM tag"), "4|'x'|9");
    let confirms = yard.confirms();
    assert_eq!(keys(confirms[1].outcome.clone()), [(2, 4)]);
    assert_eq!(keys(confirms[2].outcome.clone()), [(4, 5)]);
}

/// `UPDATE note SET id = 7 WHERE id = 2; INSERT INTO note VALUES(2, ..)`: the key is free for the unit's own next row.
#[test]
fn r3_r12_a_key_that_a_unit_gives_up_is_free_for_its_next_row_and_taken_if_the_row_stays() {
    for server_moved_it in [false, true] {
        let mut yard = notes();
        yard.sql("INSERT INTO note VALUES (2, 1, 'server')");
        let cut_at = yard.server().log_end().unwrap();
        let moved = FieldChange { column: 0, before: int(2), base: int(2), after: int(7) };
        let changes = vec![
            note(&yard, 2, 1, "next"),
            (yard.heading("note"), RowChange::Update { key: vec![int(2)], fields: vec![moved], whole: None }),
        ];
        let unit = yard.unit_at("ANNA", cut_at, changes);
        if server_moved_it {
            // The other row of that key is the server's: nothing moves, so nothing is free.
            yard.sql("DELETE FROM note WHERE id = 2; INSERT INTO note VALUES (7, 1, 'also'), (2, 1, 'server')");
        }
        yard.send("ANNA", &[unit]);
        yard.merge();
        let (status, rows) = match server_moved_it {
            false => ("ANNA1 finished", "1|'root' 2|'next' 7|'server'"),
            true => ("ANNA1 error", "1|'root' 2|'server' 7|'also'"),
        };
        assert_eq!(yard.statuses(), status);
        assert_eq!(yard.text("SELECT id, text FROM note ORDER BY id"), rows);
    }
}

#[test]
fn r12_a_unit_that_was_cut_after_the_confirm_means_the_servers_keys() {
    let mut yard = notes();
    let cut_at = yard.server().log_end().unwrap();
    yard.sql("INSERT INTO note VALUES (2, 1, 'server')");
    let changes = vec![note(&yard, 2, 1, "anna")];
    let first = yard.unit_at("ANNA", cut_at, changes);
    yard.send("ANNA", &[first]);
    yard.merge();
    assert_eq!(yard.text("SELECT id, text FROM note ORDER BY id"), "1|'root' 2|'server' 3|'anna'");
    // Now she has applied it: 2 is the server's note, which she changes.
    let change = yard.update("note", &[int(2)], &[("text", "changed".into())]);
    yard.merged("ANNA", vec![change]);
    assert_eq!(yard.text("SELECT id, text FROM note ORDER BY id"), "1|'root' 2|'changed' 3|'anna'");
    // Before that, but with the unit that made the mapping hidden: the same.
    let field = FieldChange { column: 2, before: "changed".into(), base: "changed".into(), after: "again".into() };
    let change = (yard.heading("note"), RowChange::Update { key: vec![int(2)], fields: vec![field], whole: None });
    let mut unit = yard.unit_at("ANNA", cut_at, vec![change]);
    unit.head.hidden = vec![UnitNo(1)];
    yard.send("ANNA", &[unit]);
    yard.merge();
    assert_eq!(yard.text("SELECT id, text FROM note ORDER BY id"), "1|'root' 2|'again' 3|'anna'");
}

#[test]
fn r12_a_key_that_is_given_again_means_the_newer_row() {
    let mut yard = notes();
    let cut_at = yard.server().log_end().unwrap();
    yard.sql("INSERT INTO note VALUES (2, 1, 'server')");
    let delete = (yard.heading("note"), RowChange::Delete { key: vec![int(2)], before: vec![int(2), int(1), "a".into()], base: None });
    let units: Vec<UploadUnit> =
        [vec![note(&yard, 2, 1, "a")], vec![delete], vec![note(&yard, 2, 1, "b")], vec![yard.insert("tag", &[int(2), "b".into(), int(0)])]]
            .into_iter()
            .map(|changes| yard.unit_at("ANNA", cut_at, changes))
            .collect();
    yard.send("ANNA", &units);
    assert_eq!(yard.merge(), 4);
    assert_eq!(yard.text("SELECT id, text FROM note ORDER BY id"), "1|'root' 2|'server' 3|'b'");
    assert_eq!(yard.text("SELECT note_id, name FROM tag"), "3|'b'");
    // And once the server's row is gone, the key means itself.
    yard.sql("DELETE FROM note WHERE id = 2");
    let delete = (yard.heading("note"), RowChange::Delete { key: vec![int(2)], before: vec![int(2), int(1), "b".into()], base: None });
    let untag =
        (yard.heading("tag"), RowChange::Delete { key: vec![int(2), "b".into()], before: vec![int(2), "b".into(), int(0)], base: None });
    let units: Vec<UploadUnit> =
        [vec![untag, delete], vec![note(&yard, 2, 1, "c")], vec![yard.insert("tag", &[int(2), "c".into(), int(0)])]]
            .into_iter()
            .map(|changes| yard.unit_at("ANNA", cut_at, changes))
            .collect();
    yard.send("ANNA", &units);
    assert_eq!(yard.merge(), 3);
    assert_eq!(yard.text("SELECT id, text FROM note ORDER BY id"), "1|'root' 2|'c'");
    assert_eq!(yard.text("SELECT note_id, name FROM tag"), "2|'c'");
}

#[test]
fn r12_keys_of_the_application_are_its_own() {
    let mut yard = Yard::new(
        NOTES,
        "version = 1\n[object.note]\nvisible.all = 'everyone'\n[object.tag]\nvisible.all = 'everyone'\n[table.note]\nkeys = 'own'\n",
    );
    let changes = vec![note(&yard, 1, 1, "another")];
    yard.merged("ANNA", changes);
    assert_eq!(yard.held(), "note 1: a row with this key is there already, and it is another one");
    let changes = vec![yard.insert("note", &[int(1), Value::Null, "root".into()])];
    yard.merged("BERT", changes);
    assert_eq!(yard.statuses(), "ANNA1 error BERT1 finished");
}

/// Two nodes and a program on the server insert notes and children, all offline; every child ends at its parent and none is lost.
#[test]
fn r12_random_inserts_of_everybody_lose_nothing_and_keep_every_child_at_its_parent() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut yard = notes();
        let cut_at = TxnId(yard.server().log_end().unwrap().0);
        // Per node: its next key, and its notes: key -> text.
        let mut own: BTreeMap<&str, (i64, BTreeMap<i64, String>)> =
            ["ANNA", "BERT"].map(|node| (node, (2, BTreeMap::from([(1, "root".to_owned())])))).into();
        let mut expected: BTreeMap<String, String> = BTreeMap::new();
        let mut units: BTreeMap<&str, Vec<UploadUnit>> = BTreeMap::new();
        for round in 0..20 {
            let node = ["ANNA", "BERT"][random.usize(0..2)];
            let mut changes = Vec::new();
            for part in 0..random.usize(1..4) {
                let (next, notes) = own.get_mut(node).unwrap();
                let text = format!("{node} {round} {part}");
                let parent = *notes.keys().nth(random.usize(0..notes.len())).unwrap();
                expected.insert(text.clone(), notes[&parent].clone());
                notes.insert(*next, text.clone());
                let key = *next;
                *next += 1;
                changes.push(note(&yard, key, parent, &text));
            }
            random.shuffle(&mut changes);
            let unit = yard.unit_at(node, cut_at, changes);
            units.entry(node).or_default().push(unit);
        }
        for (node, units) in &units {
            for part in units.chunks(3) {
                yard.send(node, part);
            }
        }
        let mut merger = yard.merger();
        let mut on_server = 0;
        while merger.step().unwrap() == dockmaster::base::step::Progress::Worked {
            on_server += 1;
            let text = format!("server {on_server}");
            yard.app.execute("INSERT INTO note(parent, text) VALUES (1, ?1)", [&text]).unwrap();
            expected.insert(text, "root".to_owned());
        }
        let mut statement = yard.app.prepare("SELECT n.text, p.text FROM note AS n JOIN note AS p ON p.id = n.parent").unwrap();
        let got: BTreeMap<String, String> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
        assert_eq!(got, expected, "seed {seed}");
        assert_eq!(yard.text("SELECT count(*) FROM note"), (expected.len() + 1).to_string());
    }
}
