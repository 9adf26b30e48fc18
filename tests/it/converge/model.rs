//! The model of the way up: tables as maps, units as differences of maps, and the rules of `docs/uploads.md` 5 and 7 over them.
//!
//! It shares plain data types and the definition with the product, and no code of capture, cut, merge or rebase.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use dockmaster::model::dock::{Direction, Dock, DockTable};
use dockmaster::model::merge_rules::{ConflictPolicy, DeletePolicy, KeySource, MergeRules};
use dockmaster::model::schema::Schema;
use dockmaster::model::value::{Collation, Row, RowKey, Value};
use dockmaster::store::sqlite::value_of;
use rusqlite::Connection;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A table as nodes have it.
#[derive(Debug, Clone)]
pub(super) struct Info {
    pub(super) name: String,
    /// Columns that nodes have.
    pub(super) columns: Vec<String>,
    /// Places in `columns`.
    pub(super) key: Vec<usize>,
    collations: Vec<Collation>,
    pub(super) direction: Direction,
    pub(super) rules: MergeRules,
    /// Whether a key that is taken gets replaced.
    pub(super) block: bool,
    /// Place in the definition's tables.
    pub(super) place: usize,
    pub(super) give_away: bool,
    pub(super) writable: bool,
    /// Columns that every row needs a value for.
    needed: Vec<bool>,
}

/// Rows of every table: table number -> folded key -> row.
pub(super) type Tables = BTreeMap<usize, BTreeMap<RowKey, Row>>;

/// Returns the tables of a definition that nodes have.
pub(super) fn infos(dock: &Dock, schema: &Schema) -> Vec<Info> {
    let mut infos = Vec::new();
    for (place, table) in dock.tables.iter().enumerate() {
        let Some(object) = table.object.map(|object| &dock.objects[object]) else { continue };
        let sent: Vec<usize> = (0..table.columns.len()).filter(|column| table.columns[*column].sent).collect();
        infos.push(Info {
            name: table.name.clone(),
            columns: sent.iter().map(|column| table.columns[*column].name.clone()).collect(),
            key: table.key.iter().map(|key| sent.iter().position(|column| column == key).unwrap()).collect(),
            collations: sent.iter().map(|column| table.columns[*column].collation).collect(),
            direction: object.direction,
            rules: table.merge.clone(),
            block: table.key_is_rowid && table.merge.keys == KeySource::Block,
            place,
            give_away: object.give_away,
            writable: object.writable,
            needed: sent
                .iter()
                .map(|column| {
                    let shape = schema.table(&table.name).unwrap();
                    let declared = &shape.columns[shape.column(&table.columns[*column].name).unwrap()];
                    table.key.contains(column) || (declared.not_null && !declared.has_default)
                })
                .collect(),
        });
    }
    infos
}

/// The value under which SQLite holds others equal.
fn folded(value: &Value, collation: Collation) -> Value {
    match (value, collation) {
        (Value::Real(real), _) if real.fract() == 0.0 && real.abs() < 1e15 => Value::Integer(*real as i64),
        (Value::Text(bytes), Collation::NoCase) => Value::Text(bytes.to_ascii_lowercase()),
        (Value::Text(bytes), Collation::Rtrim) => Value::text(String::from_utf8_lossy(bytes).trim_end_matches(' ')),
        _ => value.clone(),
    }
}

impl Info {
    pub(super) fn key_of(&self, row: &Row) -> RowKey {
        self.key.iter().map(|at| row[*at].clone()).collect()
    }

    /// The key under which SQLite knows one row.
    pub(super) fn fold(&self, key: &[Value]) -> RowKey {
        key.iter().zip(&self.key).map(|(value, at)| folded(value, self.collations[*at])).collect()
    }

    fn at(&self, row: &Row) -> RowKey {
        self.fold(&self.key_of(row))
    }

    pub(super) fn insert(&self, rows: &mut BTreeMap<RowKey, Row>, row: Row) {
        rows.insert(self.at(&row), row);
    }

    /// What the server is given of a new row: what only it changes is left to it.
    fn as_given(&self, row: &Row) -> Row {
        let given = |(at, value): (usize, &Value)| if self.is_server_only(at) && !self.needed[at] { Value::Null } else { value.clone() };
        row.iter().enumerate().map(given).collect()
    }

    /// Columns that a node changes for itself only.
    pub(super) fn is_server_only(&self, column: usize) -> bool {
        self.rules.is_download_only(&self.columns[column])
    }
}

/// Reads rows by name.
pub(super) fn read(connection: &Connection, infos: &[Info]) -> rusqlite::Result<Tables> {
    let mut tables = Tables::new();
    for (number, info) in infos.iter().enumerate() {
        let names: Vec<String> = info.columns.iter().map(|name| format!("\"{name}\"")).collect();
        let mut statement = connection.prepare(&format!("SELECT {} FROM \"{}\"", names.join(", "), info.name))?;
        let rows = statement.query_map([], |row| (0..names.len()).map(|at| row.get_ref(at).map(value_of)).collect::<Result<Row, _>>())?;
        let mut found = BTreeMap::new();
        for row in rows {
            info.insert(&mut found, row?);
        }
        tables.insert(number, found);
    }
    Ok(tables)
}

/// Reads what the base tables say of the server's rows: table -> folded key -> the row, or that there is none.
pub(super) type Bases = BTreeMap<usize, BTreeMap<RowKey, Option<Row>>>;

/// See [`Bases`].
pub(super) fn read_bases(connection: &Connection, infos: &[Info]) -> rusqlite::Result<Bases> {
    let mut bases = Bases::new();
    let mut captured = connection.prepare("SELECT id, table_name, columns FROM dock_capture")?;
    let captured: Vec<(i64, String, String)> =
        captured.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?;
    for (id, table, columns) in captured {
        let Some(number) = infos.iter().position(|info| info.name == table) else { continue };
        let info = &infos[number];
        let columns: Vec<String> = serde_json::from_str(&columns).unwrap();
        let places: Vec<String> =
            info.columns.iter().map(|name| format!("c{}", columns.iter().position(|column| column == name).unwrap() + 1)).collect();
        let mut statement = connection.prepare(&format!("SELECT present, {} FROM dock_base_{id}", places.join(", ")))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let present: bool = row.get(0)?;
            let values: Row = (0..places.len()).map(|at| row.get_ref(at + 1).map(value_of)).collect::<Result<_, _>>()?;
            bases.entry(number).or_default().insert(info.at(&values), present.then_some(values));
        }
    }
    Ok(bases)
}

/// Server view = tables overlaid by what the bases say.
pub(super) fn overlaid(tables: &Tables, bases: &Bases) -> Tables {
    let mut view = tables.clone();
    for (number, entries) in bases {
        let rows = view.entry(*number).or_default();
        for (key, row) in entries {
            match row {
                Some(row) => drop(rows.insert(key.clone(), row.clone())),
                None => drop(rows.remove(key)),
            }
        }
    }
    view
}

/// A changed column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    pub(super) column: usize,
    pub(super) before: Value,
    pub(super) base: Option<Value>,
    pub(super) after: Value,
}

/// What a unit does to one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    Insert(Row),
    Update { key: RowKey, fields: Vec<Field>, whole: Row },
    Delete { before: Row, base: Option<Row> },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) table: usize,
    pub(super) what: What,
}

/// One unit of a node.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) changes: Vec<Change>,
}

impl Change {
    /// The folded key before, or of an insert the new one.
    pub(super) fn at(&self, infos: &[Info]) -> RowKey {
        let info = &infos[self.table];
        match &self.what {
            What::Insert(row) | What::Delete { before: row, .. } => info.at(row),
            What::Update { key, .. } => info.fold(key),
        }
    }
}

/// Returns what leads from one state of a node to another; `view` is the server's as the node knows it, `moved` are rows whose key
/// changed (table, folded key before, folded key after).
pub(super) fn difference(infos: &[Info], before: &Tables, after: &Tables, view: &Tables, moved: &[(usize, RowKey, RowKey)]) -> Vec<Change> {
    let mut changes = Vec::new();
    for (number, info) in infos.iter().enumerate() {
        let (old, new, view) = (&before[&number], &after[&number], &view[&number]);
        let moved: Vec<_> = moved
            .iter()
            .filter(|(table, from, to)| *table == number && from != to && old.contains_key(from) && new.contains_key(to))
            .collect();
        let pairs = old.keys().map(|key| (key, moved.iter().find(|(_, from, _)| from == key).map_or(key, |(_, _, to)| to)));
        for (key, after) in pairs {
            let row = &old[key];
            let base = view.get(key);
            let what = match new.get(after).filter(|_| key == after || moved.iter().any(|(_, from, _)| from == key)) {
                // Another row has moved to its key.
                Some(_) if key == after && moved.iter().any(|(_, _, to)| to == key) => {
                    What::Delete { before: row.clone(), base: base.cloned() }
                }
                None => What::Delete { before: row.clone(), base: base.cloned() },
                Some(now) => {
                    let fields: Vec<Field> = (0..row.len())
                        .filter(|at| row[*at] != now[*at] && !info.is_server_only(*at))
                        .map(|at| Field {
                            column: at,
                            before: row[at].clone(),
                            base: base.map(|base| base[at].clone()),
                            after: now[at].clone(),
                        })
                        .collect();
                    if fields.is_empty() {
                        continue;
                    }
                    What::Update { key: info.key_of(row), fields, whole: now.clone() }
                }
            };
            changes.push(Change { table: number, what });
        }
        for (key, row) in new {
            let is_moved = moved.iter().any(|(_, _, to)| to == key);
            if !is_moved && (!old.contains_key(key) || moved.iter().any(|(_, from, _)| from == key)) {
                changes.push(Change { table: number, what: What::Insert(row.clone()) });
            }
        }
    }
    changes
}

/// Returns server + (after - before), if all are numbers.
fn added(server: &Value, before: &Value, after: &Value) -> Option<Value> {
    let real = |value: &Value| match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Real(number) => Some(*number),
        _ => None,
    };
    match (server, before, after) {
        (Value::Integer(server), Value::Integer(before), Value::Integer(after)) => Some(Value::Integer(server + (after - before))),
        _ => {
            // Columns of sums are declared INTEGER: SQLite keeps a whole number as one.
            let sum = real(server)? + (real(after)? - real(before)?);
            Some(if sum.fract() == 0.0 { Value::Integer(sum as i64) } else { Value::Real(sum) })
        }
    }
}

/// Redoes a unit over a state; says why it cannot be.
pub(super) fn redo(infos: &[Info], tables: &mut Tables, unit: &Unit) -> Result<(), String> {
    let mut landed: Vec<(usize, Row)> = Vec::new();
    // Of upload tables a node keeps what it likes.
    for change in unit.changes.iter().filter(|change| infos[change.table].direction != Direction::Upload) {
        let info = &infos[change.table];
        let rows = tables.get_mut(&change.table).unwrap();
        let at = change.at(infos);
        match &change.what {
            What::Insert(row) => landed.push((change.table, row.clone())),
            What::Delete { .. } => drop(rows.remove(&at)),
            What::Update { fields, whole, .. } => {
                let Some(mut row) = rows.remove(&at) else {
                    if info.rules.delete == DeletePolicy::Resurrect {
                        landed.push((change.table, whole.clone()));
                        continue;
                    }
                    return Err(format!("{} {at:?} is gone", info.name));
                };
                for field in fields {
                    let sum = *info.rules.policy_of(&info.columns[field.column]) == ConflictPolicy::Sum;
                    let value = if sum { added(&row[field.column], &field.before, &field.after) } else { None };
                    row[field.column] = value.unwrap_or_else(|| field.after.clone());
                }
                landed.push((change.table, row));
            }
        }
    }
    for (table, row) in landed {
        let info = &infos[table];
        let rows = tables.get_mut(&table).unwrap();
        let at = info.at(&row);
        if let Some(other) = rows.get(&at)
            && *other != row
        {
            return Err(format!("{} {at:?} is taken", info.name));
        }
        rows.insert(at, row);
    }
    Ok(())
}

/// A conflict, as far as the model tells: table, folded key, column, winner, rule.
pub(super) type Told = (String, RowKey, Option<String>, String, String);

/// What merging a unit comes to.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict {
    pub(super) conflicts: Vec<Told>,
    /// Per row that is written: table, folded key before, the row after as far as it is known; `None` = it goes.
    pub(super) writes: Vec<(usize, Option<RowKey>, Option<Row>)>,
    /// Rows that get a new key.
    pub(super) provisional: Vec<(usize, Row)>,
    pub(super) refused: Option<String>,
}

/// Merges a unit into the rows that the server has.
pub(super) fn merge(infos: &[Info], server: &Tables, unit: &Unit, sees: &dyn Fn(usize, &RowKey) -> bool) -> Verdict {
    let mut verdict = Verdict::default();
    let mut successors = Vec::new();
    for change in &unit.changes {
        let info = &infos[change.table];
        let at = change.at(infos);
        // A row whose key the server spells otherwise (NOCASE) is another one to the merge.
        let spelled = match &change.what {
            What::Insert(row) | What::Delete { before: row, .. } => info.key_of(row),
            What::Update { key, .. } => key.clone(),
        };
        let theirs = server[&change.table].get(&at).filter(|row| info.key_of(row) == spelled);
        let tell = |column: Option<usize>, winner: &str, rule: &str| -> Told {
            (info.name.clone(), at.clone(), column.map(|column| info.columns[column].clone()), winner.to_owned(), rule.to_owned())
        };
        // Whoever changes a row held it once: so it left the view.
        if !matches!(change.what, What::Insert(_)) && theirs.is_some() && !sees(change.table, &at) {
            verdict.conflicts.push(tell(None, "server", "out-of-view"));
            continue;
        }
        match (&change.what, theirs) {
            (What::Insert(row), None) => verdict.writes.push((change.table, None, Some(info.as_given(row)))),
            (What::Insert(row), Some(_)) if is_left(infos, unit, change.table, &at) => successors.push((change.table, at, row)),
            (What::Insert(row), Some(_)) if info.block => verdict.provisional.push((change.table, info.as_given(row))),
            (What::Insert(row), Some(theirs)) => {
                if (0..row.len()).any(|column| row[column] != theirs[column] && !info.is_server_only(column)) {
                    verdict.refused = Some(format!("{} {at:?} is taken", info.name));
                }
            }
            (What::Update { whole, .. }, None) => {
                if info.rules.delete == DeletePolicy::Resurrect {
                    verdict.conflicts.push(tell(None, "client", "resurrect"));
                    verdict.writes.push((change.table, None, Some(info.as_given(whole))));
                } else {
                    verdict.conflicts.push(tell(None, "server", "delete-wins"));
                }
            }
            (What::Update { fields, .. }, Some(theirs)) => {
                let mut row = theirs.clone();
                for field in fields {
                    let (told, value) = merge_field(info, field, fields, theirs);
                    if let Some((winner, rule)) = told {
                        verdict.conflicts.push(tell(Some(field.column), winner, &rule));
                    }
                    row[field.column] = value;
                }
                if row != *theirs {
                    verdict.writes.push((change.table, Some(at.clone()), Some(row)));
                }
            }
            (What::Delete { .. }, None) => {}
            (What::Delete { before, base }, Some(theirs)) => {
                let base = base.as_ref().unwrap_or(before);
                let changed = (0..theirs.len()).any(|column| theirs[column] != before[column] && theirs[column] != base[column]);
                let stays = changed && info.rules.delete == DeletePolicy::Resurrect;
                if changed {
                    verdict.conflicts.push(if stays { tell(None, "server", "resurrect") } else { tell(None, "client", "delete-wins") });
                }
                if !stays {
                    verdict.writes.push((change.table, Some(at.clone()), None));
                }
            }
        }
    }
    // A row under a key that the same unit gave up is that key's next one, if the former one did go.
    for (table, at, row) in successors {
        let info = &infos[table];
        let went = verdict.writes.iter().any(|(of, was, is)| {
            *of == table && was.as_ref() == Some(&at) && is.as_ref().is_none_or(|row| info.fold(&info.key_of(row)) != at)
        });
        match went {
            true => verdict.writes.push((table, None, Some(info.as_given(row)))),
            false => verdict.refused = Some(format!("{} {at:?} is taken", info.name)),
        }
    }
    verdict
}

/// Whether a unit gives up a key: the row under it is deleted, or gets another key.
fn is_left(infos: &[Info], unit: &Unit, table: usize, at: &RowKey) -> bool {
    unit.changes.iter().filter(|change| change.table == table && change.at(infos) == *at).any(|change| match &change.what {
        What::Insert(_) => false,
        What::Delete { .. } => true,
        What::Update { fields, .. } => fields.iter().any(|field| infos[table].key.contains(&field.column)),
    })
}

/// Merges a field: the conflict, and the value that stands.
fn merge_field(info: &Info, field: &Field, fields: &[Field], theirs: &Row) -> (Option<(&'static str, String)>, Value) {
    let server = &theirs[field.column];
    let policy = info.rules.policy_of(&info.columns[field.column]);
    let agreed = *server == field.before || Some(server) == field.base.as_ref() || *server == field.after;
    if *policy == ConflictPolicy::Sum
        && let Some(sum) = added(server, &field.before, &field.after)
    {
        return ((!agreed).then(|| ("both", policy.to_string())), sum);
    }
    if agreed {
        return (None, field.after.clone());
    }
    let winner = match policy {
        ConflictPolicy::ServerWins | ConflictPolicy::Sum => "server",
        ConflictPolicy::ClientWins => "client",
        ConflictPolicy::Manual => "open",
        ConflictPolicy::Newest(column) => {
            let place = info.columns.iter().position(|name| name == column);
            let ours = fields.iter().find(|field| Some(field.column) == place).map(|field| &field.after);
            let newer = match (ours, place.map(|place| &theirs[place])) {
                (Some(ours), Some(theirs)) => later(ours, theirs),
                _ => false,
            };
            if newer { "client" } else { "server" }
        }
    };
    (Some((winner, policy.to_string())), if winner == "client" { field.after.clone() } else { server.clone() })
}

/// Whether a value comes after another in SQLite's order: NULL, numbers, texts, blobs.
fn later(ours: &Value, theirs: &Value) -> bool {
    let class = |value: &Value| match value {
        Value::Null => 0,
        Value::Integer(_) | Value::Real(_) => 1,
        Value::Text(_) => 2,
        Value::Blob(_) => 3,
    };
    let real = |value: &Value| match value {
        Value::Integer(number) => *number as f64,
        Value::Real(number) => *number,
        _ => 0.0,
    };
    match (ours, theirs) {
        (Value::Text(ours), Value::Text(theirs)) | (Value::Blob(ours), Value::Blob(theirs)) => ours > theirs,
        _ if class(ours) == 1 && class(theirs) == 1 => real(ours) > real(theirs),
        _ => class(ours).cmp(&class(theirs)) == Ordering::Greater,
    }
}

/// The captured row of a definition's table as nodes have it.
pub(super) fn sent_row(table: &DockTable, row: &Row) -> Row {
    table.columns.iter().zip(row).filter(|(column, _)| column.sent).map(|(_, value)| value.clone()).collect()
}

/// Columns of a table that hold the key of another one, or refer to it: lists in the order of the key.
fn places(infos: &[Info], schema: &Schema, of: usize, target: usize) -> Vec<Vec<usize>> {
    let (info, key_of) = (&infos[of], &infos[target]);
    let mut places: Vec<Vec<usize>> = if of == target { vec![info.key.clone()] } else { Vec::new() };
    let shape = schema.table(&info.name).unwrap();
    for key in &shape.foreign_keys {
        let names: Vec<&String> = key_of.key.iter().map(|at| &key_of.columns[*at]).collect();
        if key.to_table.eq_ignore_ascii_case(&key_of.name) && key.to_columns.iter().eq(names) {
            let columns: Option<Vec<usize>> =
                key.columns.iter().map(|column| info.columns.iter().position(|name| *name == shape.columns[*column].name)).collect();
            places.extend(columns);
        }
    }
    places
}

fn rename_in_row(places: &[Vec<usize>], row: &mut Row, old: &RowKey, new: &RowKey) {
    for place in places {
        if place.iter().zip(old).all(|(at, value)| row[*at] == *value) {
            place.iter().zip(new).for_each(|(at, value)| row[*at] = value.clone());
        }
    }
}

/// Gives a row that a unit makes another key: in that row, and where the unit refers to it. What was there before the unit meant another row.
pub(super) fn rename_new(infos: &[Info], schema: &Schema, unit: &mut Unit, table: usize, old: &RowKey, new: &RowKey) {
    for change in &mut unit.changes {
        let places = places(infos, schema, change.table, table);
        match &mut change.what {
            What::Insert(row) => rename_in_row(&places, row, old, new),
            What::Update { fields, .. } => {
                for field in fields.iter_mut().filter(|field| places.iter().any(|place| *place == [field.column])) {
                    if field.after == old[0] {
                        field.after = new[0].clone();
                    }
                }
            }
            What::Delete { .. } => {}
        }
    }
}

/// Gives a row another key, in a unit that names it or refers to it.
pub(super) fn rename(infos: &[Info], schema: &Schema, unit: &mut Unit, table: usize, old: &RowKey, new: &RowKey) {
    for change in &mut unit.changes {
        let places = places(infos, schema, change.table, table);
        let in_row = |row: &mut Row| rename_in_row(&places, row, old, new);
        match &mut change.what {
            What::Insert(row) => in_row(row),
            What::Delete { before, base } => {
                in_row(before);
                base.iter_mut().for_each(in_row);
            }
            What::Update { key, fields, whole } => {
                if change.table == table && key == old {
                    key.clone_from(new);
                }
                in_row(whole);
                for place in places.iter().filter(|place| place.len() == 1) {
                    for field in fields.iter_mut().filter(|field| field.column == place[0]) {
                        for value in [&mut field.before, &mut field.after].into_iter().chain(&mut field.base) {
                            if *value == old[0] {
                                *value = new[0].clone();
                            }
                        }
                    }
                }
            }
        }
    }
}
