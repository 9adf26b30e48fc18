//! The triggers that keep the server's row of each row that local work touches: `dock_base_N` (R21).
//!
//! What must hold:
//! - The first touch writes the entry, before the row changes; later ones find it there. What may remove a row without a trigger of its
//!   own (a conflict clause) is met by the same conditions as the hints of `capture`.
//! - No conflict clause and no constraint that can fail (R4). Columns are untyped, so that a value is kept as it is; comparisons take the
//!   affinity off the other side (`+`) and name the collation of the primary key, so that the index on the key serves.
//! - A key that only SQLite gives is foretold before the insert and noted after it: a program's newer trigger may write the new row
//!   before our AFTER trigger runs, and would else pass its image off as the server's.
//! - NULL keys have no entry: such rows are none that the server could know.

use super::capture::{Rival, other_rows, rivals};
use super::sqlite::{quote_name, quote_text};
use crate::model::schema::{TableShape, TermKind};

/// Returns the name of the base table of a capture.
pub(super) fn base_table(id: i64) -> String {
    format!("dock_base_{id}")
}

/// Returns the statements that make an empty base table. `key`: places of the key columns among the captured ones.
pub(super) fn base_table_sql(id: i64, table: &TableShape, columns: &[usize]) -> String {
    let name = base_table(id);
    let places: Vec<String> = (1..=columns.len()).map(|place| format!("c{place}")).collect();
    let key: Vec<String> =
        key_terms(table, columns).into_iter().map(|(column, _, collation)| format!("{column} COLLATE {collation}")).collect();
    format!(
        "CREATE TABLE main.{name} (present INTEGER, settled INTEGER, {});
         CREATE INDEX main.{name}_key ON {name} ({});
         CREATE INDEX main.{name}_new ON {name} (settled) WHERE settled IS NULL;",
        places.join(", "),
        key.join(", ")
    )
}

/// Returns each key column: its name in the base table, its quoted name in the table, and the quoted collation of the primary key.
pub(super) fn key_terms(table: &TableShape, columns: &[usize]) -> Vec<(String, String, String)> {
    let primary = table.unique_indexes.iter().find(|index| index.primary);
    let term = |position: &usize| {
        let place = columns.iter().position(|column| column == position)?;
        let collation = primary
            .and_then(|index| index.terms.iter().find(|term| term.what == TermKind::Column(*position)))
            .map_or("BINARY", |term| term.collation.as_str());
        Some((format!("c{}", place + 1), quote_name(&table.columns.get(*position)?.name), quote_name(collation)))
    };
    table.key.iter().filter_map(term).collect()
}

/// Returns the base triggers of a table: (name, text). `columns` are the captured ones, indices into the table's.
pub(super) fn base_trigger_texts(id: i64, table: &TableShape, columns: &[usize]) -> Vec<(String, String)> {
    let texts = Texts::of(id, table, columns);
    let on = quote_name(&table.name);
    let (from, row) = other_rows(table);
    let (mut on_insert, mut on_update) = (String::new(), texts.note_row("OLD.", None, None));
    for Rival { equal, guard } in rivals(table, &row) {
        on_insert.push_str(&texts.note_row(&row, Some(&from), Some(&equal)));
        let tested = guard.map(|guard| format!("({guard}) AND ")).unwrap_or_default();
        on_update.push_str(&texts.note_row(&row, Some(&from), Some(&format!("{tested}{equal}"))));
    }
    on_insert.push_str(&texts.note_absent("NEW.", None));
    let moved: Vec<String> = texts.key.iter().map(|(_, name, _)| format!("NEW.{name} IS NOT OLD.{name}")).collect();
    on_update.push_str(&texts.note_absent("NEW.", Some(&format!("({})", moved.join(" OR ")))));
    if table.key_is_rowid {
        on_insert.push_str(&texts.note_foretold(table));
    }
    let mut triggers = vec![
        (format!("dock_bi_{id}"), format!("CREATE TRIGGER dock_bi_{id} BEFORE INSERT ON {on} BEGIN\n{on_insert}END")),
        (format!("dock_bu_{id}"), format!("CREATE TRIGGER dock_bu_{id} BEFORE UPDATE ON {on} BEGIN\n{on_update}END")),
        (
            format!("dock_bd_{id}"),
            format!("CREATE TRIGGER dock_bd_{id} BEFORE DELETE ON {on} BEGIN\n{}END", texts.note_row("OLD.", None, None)),
        ),
    ];
    if table.key_is_rowid {
        let note = texts.note_absent("NEW.", None);
        triggers.push((format!("dock_ba_{id}"), format!("CREATE TRIGGER dock_ba_{id} AFTER INSERT ON {on} BEGIN\n{note}END")));
    }
    triggers
}

struct Texts {
    base: String,
    /// Quoted names of the captured columns.
    names: Vec<String>,
    /// As [`key_terms`].
    key: Vec<(String, String, String)>,
    /// Quoted names of key columns that may be NULL.
    nullable: Vec<String>,
}

impl Texts {
    fn of(id: i64, table: &TableShape, columns: &[usize]) -> Texts {
        let name = |position: &usize| table.columns.get(*position).map(|column| quote_name(&column.name));
        let nullable = table.key.iter().filter(|position| table.columns.get(**position).is_some_and(|column| !column.not_null));
        Texts {
            base: base_table(id),
            names: columns.iter().filter_map(name).collect(),
            key: key_terms(table, columns),
            nullable: nullable.filter_map(name).collect(),
        }
    }

    /// There is no entry yet for the key of the row whose columns have that prefix.
    fn is_new(&self, row: &str) -> String {
        let equal: Vec<String> =
            self.key.iter().map(|(place, name, collation)| format!("dock_b.{place} COLLATE {collation} = +{row}{name}")).collect();
        let not_null: String = self.nullable.iter().map(|name| format!(" AND {row}{name} IS NOT NULL")).collect();
        format!("NOT EXISTS (SELECT 1 FROM {} AS dock_b WHERE {}){not_null}", self.base, equal.join(" AND "))
    }

    /// Notes a row that is there: the trigger's own, or those of the table that a condition finds.
    fn note_row(&self, row: &str, from: Option<&str>, condition: Option<&str>) -> String {
        let places: Vec<String> = (1..=self.names.len()).map(|place| format!("c{place}")).collect();
        let values: Vec<String> = self.names.iter().map(|name| format!("{row}{name}")).collect();
        let from = from.map(|from| format!(" FROM {from}")).unwrap_or_default();
        let condition = condition.map(|condition| format!("{condition} AND ")).unwrap_or_default();
        let (base, places, values, is_new) = (&self.base, places.join(", "), values.join(", "), self.is_new(row));
        format!("  INSERT INTO {base}(present, {places})\n  SELECT 1, {values}{from} WHERE {condition}{is_new};\n")
    }

    /// Notes that there is no row of that key. Rows that are there have been noted before.
    fn note_absent(&self, row: &str, condition: Option<&str>) -> String {
        let places: Vec<&str> = self.key.iter().map(|(place, _, _)| place.as_str()).collect();
        let values: Vec<String> = self.key.iter().map(|(_, name, _)| format!("{row}{name}")).collect();
        let condition = condition.map(|condition| format!("{condition} AND ")).unwrap_or_default();
        let (base, places, values, is_new) = (&self.base, places.join(", "), values.join(", "), self.is_new(row));
        format!("  INSERT INTO {base}(present, {places})\n  SELECT 0, {values} WHERE {condition}{is_new};\n")
    }

    /// Notes the key that SQLite is going to give: one more than the highest. Before the insert NEW has -1 then.
    fn note_foretold(&self, table: &TableShape) -> String {
        let Some((place, name, _)) = self.key.first() else { return String::new() };
        let highest = format!("ifnull((SELECT max({name}) FROM {}), 0)", quote_name(&table.name));
        let highest = if table.sql.to_ascii_uppercase().contains("AUTOINCREMENT") {
            let sequence = format!("(SELECT seq FROM sqlite_sequence WHERE name = {})", quote_text(&table.name));
            format!("max({highest}, ifnull({sequence}, 0))")
        } else {
            highest
        };
        let base = &self.base;
        format!(
            "  INSERT INTO {base}(present, {place})\n  SELECT 0, dock_n.k FROM (SELECT {highest} + 1 AS k) AS dock_n
  WHERE NEW.{name} = -1 AND typeof(dock_n.k) = 'integer' AND NOT EXISTS (SELECT 1 FROM {base} AS dock_b WHERE dock_b.{place} = +dock_n.k);\n"
        )
    }
}
