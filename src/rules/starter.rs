//! `init`: a first definition from the live schema.
//!
//! It guesses what foreign keys tell (lookup tables, members that travel with their parent) and leaves open what they do
//! not: whose rows an object's rows are. An open object is shown to nobody, so the file passes `check` as it is and
//! shows nothing to anyone by mistake.

use crate::base::limits::COLUMNS_MAX;
use crate::model::schema::{ForeignKey, Schema, TableShape};
use crate::model::value::Collation;
use crate::rules::draft::{spell, toml_key, toml_string};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Tables for everyone that the summary names.
const EVERYONE_NAMED_MAX: usize = 8;
/// A table with more rows is not taken for a lookup table.
const LOOKUP_ROWS_MAX: u64 = 1_000;
/// A table that refers to more others is taken for one that records what happens, not for a lookup table.
const LOOKUP_REFERENCES_MAX: usize = 2;

/// A first definition.
#[derive(Debug, Clone)]
pub struct Starter {
    /// Text of the file.
    pub text: String,
    /// One paragraph for the user.
    pub summary: String,
}

/// What becomes of each table.
struct Guess<'a> {
    schema: &'a Schema,
    /// Tables that cannot be replicated, with the reason.
    unusable: Vec<(&'a str, &'static str)>,
    reference: BTreeSet<usize>,
    /// Member -> its parent, the primary table or another member.
    parent: BTreeMap<usize, usize>,
    /// Primary tables of objects, each with its members in an order in which parents come first.
    objects: Vec<(usize, Vec<usize>)>,
}

/// Writes a first definition for a schema; `rows` are row counts by table name.
pub fn starter(schema: &Schema, database_path: &str, rows: &BTreeMap<String, u64>) -> Starter {
    let guess = Guess::of(schema, rows);
    let text = guess.text(database_path);
    let summary = guess.summary(database_path);
    Starter { text, summary }
}

impl<'a> Guess<'a> {
    fn of(schema: &'a Schema, rows: &BTreeMap<String, u64>) -> Guess<'a> {
        let mut guess = Guess { schema, unusable: Vec::new(), reference: BTreeSet::new(), parent: BTreeMap::new(), objects: Vec::new() };
        let mut usable = Vec::new();
        for (table, shape) in schema.tables.iter().enumerate() {
            match obstacle(shape) {
                Some(why) => guess.unusable.push((&shape.name, why)),
                None => usable.push(table),
            }
        }
        guess.find_reference(&usable, rows);
        let open: Vec<usize> = usable.into_iter().filter(|table| !guess.reference.contains(table)).collect();
        for table in &open {
            if let Some(parent) = guess.parent_of(*table, &open) {
                guess.parent.insert(*table, parent);
            }
        }
        guess.cut_circles();
        for table in &open {
            if !guess.parent.contains_key(table) {
                let mut members = Vec::new();
                guess.collect_members(*table, &open, &mut members);
                guess.objects.push((*table, members));
            }
        }
        guess
    }

    /// A lookup table is small and refers to few tables, all of them lookup tables; others refer to it, or it stands alone.
    fn find_reference(&mut self, usable: &[usize], rows: &BTreeMap<String, u64>) {
        loop {
            let next = usable.iter().copied().find(|table| {
                let shape = &self.schema.tables[*table];
                let mut to_others = shape.foreign_keys.iter().filter(|key| self.target(key) != Some(*table));
                let closed = to_others.clone().all(|key| self.target(key).is_some_and(|target| self.reference.contains(&target)));
                let small = rows.get(&shape.name).is_some_and(|rows| *rows <= LOOKUP_ROWS_MAX);
                let few = to_others.clone().count() <= LOOKUP_REFERENCES_MAX;
                !self.reference.contains(table) && closed && small && few && (self.is_referred_to(*table) || to_others.next().is_none())
            });
            match next {
                Some(table) => self.reference.insert(table),
                None => return,
            };
        }
    }

    fn is_referred_to(&self, table: usize) -> bool {
        let mut others = self.schema.tables.iter().enumerate().filter(|(other, _)| *other != table);
        others.any(|(_, shape)| shape.foreign_keys.iter().any(|key| self.target(key) == Some(table)))
    }

    fn target(&self, key: &ForeignKey) -> Option<usize> {
        self.schema.tables.iter().position(|table| table.name.eq_ignore_ascii_case(&key.to_table))
    }

    /// Returns the table that a table travels with: the one open table to which it has a foreign key, if it has one only,
    /// and is a part of that row: nothing refers to it, its key holds the parent's, or it is deleted with the parent.
    fn parent_of(&self, table: usize, open: &[usize]) -> Option<usize> {
        let shape = &self.schema.tables[table];
        let mut to_open = shape.foreign_keys.iter().filter(|key| self.target(key).is_some_and(|target| open.contains(&target)));
        let key = to_open.next()?;
        let parent = self.target(key)?;
        let is_part = !self.is_referred_to(table)
            || key.columns.iter().all(|column| shape.key.contains(column))
            || key.on_delete.eq_ignore_ascii_case("CASCADE");
        (to_open.next().is_none() && parent != table && is_part && self.is_key(parent, key)).then_some(parent)
    }

    /// Returns whether a foreign key refers to the other table's primary key; another unique key is left to a person.
    fn is_key(&self, target: usize, key: &ForeignKey) -> bool {
        let target = &self.schema.tables[target];
        let referred: BTreeSet<Option<usize>> = key.to_columns.iter().map(|name| target.column(name)).collect();
        referred == target.key.iter().map(|column| Some(*column)).collect()
    }

    /// Two tables that travel with each other: the first by name stays an object.
    fn cut_circles(&mut self) {
        let tables: Vec<usize> = self.parent.keys().copied().collect();
        for start in tables {
            let mut seen = BTreeSet::from([start]);
            let mut table = start;
            while let Some(parent) = self.parent.get(&table).copied() {
                if !seen.insert(parent) {
                    self.parent.remove(&start);
                    break;
                }
                table = parent;
            }
        }
    }

    fn collect_members(&self, of: usize, open: &[usize], members: &mut Vec<usize>) {
        for table in open {
            if self.parent.get(table) == Some(&of) {
                members.push(*table);
                self.collect_members(*table, open, members);
            }
        }
    }

    fn name(&self, table: usize) -> &'a str {
        &self.schema.tables[table].name
    }

    /// Returns single-column foreign keys of a table to lookup tables: (column, table, key column). One of them may say
    /// whose its rows are.
    fn owners(&self, table: usize) -> Vec<(&'a str, &'a str, &'a str)> {
        let shape = &self.schema.tables[table];
        let mut owners = Vec::new();
        for key in &shape.foreign_keys {
            let Some(target) = self.target(key).filter(|target| self.reference.contains(target)) else { continue };
            let target = &self.schema.tables[target];
            let column = key.columns.first().and_then(|column| shape.columns.get(*column));
            let to = key.to_columns.first().and_then(|name| target.column(name)).and_then(|column| target.columns.get(column));
            if let (1, Some(column), Some(to)) = (key.columns.len(), column, to) {
                owners.push((column.name.as_str(), target.name.as_str(), to.name.as_str()));
            }
        }
        owners
    }

    fn text(&self, database: &str) -> String {
        let mut text =
            "version = 1\n\n# A first definition, guessed from foreign keys. Edit the lines marked TODO, then:  dockmaster check\n\n"
                .to_owned();
        // Writing to a String cannot fail; the results are of no use.
        let list: Vec<String> = self.reference.iter().map(|table| toml_string(self.name(*table))).collect();
        let _ = writeln!(
            text,
            "# Every node gets all rows of these tables: take out what not everyone may see. Only the server changes them.\nreference = [{}]\n",
            list.join(", ")
        );
        let _ = writeln!(text, "[server]\nname = \"HQ\"\ndatabase = {}\n", toml_string(database));
        let _ = writeln!(text, "[node]\n# TODO what a node is: an attribute that rules compare with, for example");
        match self.objects.iter().flat_map(|(table, _)| self.owners(*table)).next() {
            Some((_, table, column)) => {
                let _ = writeln!(
                    text,
                    "# {} = {{ type = {}, must_exist = {} }}",
                    attribute(table),
                    self.type_of(table, column),
                    must_exist(table, column)
                );
            }
            None => text.push_str("# owner = { type = \"text\" }\n"),
        }
        for (table, members) in &self.objects {
            self.object(*table, members, &mut text);
        }
        for table in &self.reference {
            let dangling = self.outside(*table);
            if !dangling.is_empty() {
                let _ = writeln!(text, "\n[table.{}]\ndangling = [{}]", toml_key(self.name(*table)), dangling.join(", "));
            }
        }
        if !self.unusable.is_empty() {
            text.push_str("\n# Left out:\n");
            for (table, why) in &self.unusable {
                let _ = writeln!(text, "#   {table}: {why}");
            }
        }
        text
    }

    fn object(&self, table: usize, members: &[usize], text: &mut String) {
        let _ = writeln!(text, "\n[object.{}]", toml_key(self.name(table)));
        if !members.is_empty() {
            let list: Vec<String> = members.iter().map(|member| toml_string(self.name(*member))).collect();
            let _ = writeln!(text, "members = [{}]", list.join(", "));
        }
        let dangling: Vec<String> = std::iter::once(&table).chain(members).flat_map(|table| self.outside(*table)).collect();
        if !dangling.is_empty() {
            let _ = writeln!(text, "dangling = [{}]", dangling.join(", "));
        }
        text.push_str("visible = 'nobody'          # TODO whose rows are they? 'everyone', or for example:\n");
        let owners = self.owners(table);
        for (column, target, to) in &owners {
            let name = attribute(target);
            let path = spelled(self.name(table), column);
            let _ = writeln!(
                text,
                "# visible.{name} = '{path} = node.{name}'          with, under [node]:  {name} = {{ type = {}, must_exist = {} }}",
                self.type_of(target, to),
                must_exist(target, to)
            );
        }
        if owners.is_empty() {
            let column = self.schema.tables[table].columns.first().map_or("id", |column| column.name.as_str());
            let _ = writeln!(text, "# visible.own = '{} = node.owner'", spelled(self.name(table), column));
        }
    }

    /// Returns the foreign keys of a table that lead to tables that are left out, as `dangling` spells them.
    fn outside(&self, table: usize) -> Vec<String> {
        let shape = &self.schema.tables[table];
        let left_out = |key: &ForeignKey| match self.target(key) {
            None => true,
            Some(target) => self.unusable.iter().any(|(name, _)| *name == self.name(target)),
        };
        let columns = |key: &ForeignKey| {
            let names: Vec<&str> =
                key.columns.iter().filter_map(|column| shape.columns.get(*column)).map(|column| column.name.as_str()).collect();
            match names.as_slice() {
                [single] => spelled(&shape.name, single),
                several => {
                    let several: Vec<String> = several.iter().map(|column| spell(column)).collect();
                    format!("{}.({})", spell(&shape.name), several.join(", "))
                }
            }
        };
        shape.foreign_keys.iter().filter(|key| left_out(key)).map(|key| toml_string(&columns(key))).collect()
    }

    fn type_of(&self, table: &str, column: &str) -> &'static str {
        let shape = self.schema.table(table);
        let declared = shape.and_then(|shape| shape.columns.get(shape.column(column)?)).map(|column| column.decl_type.to_ascii_uppercase());
        if declared.is_some_and(|declared| declared.contains("INT")) { "\"integer\"" } else { "\"text\"" }
    }

    fn summary(&self, database: &str) -> String {
        let keys: usize = self.schema.tables.iter().map(|table| table.foreign_keys.len()).sum();
        let open: Vec<String> = self
            .objects
            .iter()
            .filter_map(|(table, _)| Some(format!("{} has {}", self.name(*table), self.owners(*table).first()?.0)))
            .take(3)
            .collect();
        let whose = if open.is_empty() { String::new() } else { format!(" ({}: whose rows are they?)", open.join(", ")) };
        // By name: what every node gets is the one guess that a person must not overlook.
        let everyone: Vec<&str> = self.reference.iter().map(|table| self.name(*table)).collect();
        let everyone = match everyone.as_slice() {
            [] => String::new(),
            [first @ .., _] if first.len() >= EVERYONE_NAMED_MAX => {
                format!(
                    " ({} and {} more)",
                    everyone.get(..EVERYONE_NAMED_MAX).unwrap_or_default().join(", "),
                    everyone.len() - EVERYONE_NAMED_MAX
                )
            }
            all => format!(" ({})", all.join(", ")),
        };
        let mut summary = format!(
            "Read {database}: {}, {}. Wrote dockmaster.toml: {} for everyone{everyone},\n{} guessed from foreign keys, each marked TODO{whose}.",
            some(self.schema.tables.len(), "table"),
            some(keys, "foreign key"),
            some(self.reference.len(), "table"),
            some(self.objects.len(), "object")
        );
        if !self.unusable.is_empty() {
            let names: Vec<&str> = self.unusable.iter().map(|(name, _)| *name).collect();
            let _ = write!(summary, "\nLeft out: {}; the file says why.", names.join(", "));
        }
        summary.push_str("\nNext: edit the TODO lines, then  dockmaster check");
        summary
    }
}

/// Returns why a table cannot be replicated, if so.
fn obstacle(shape: &TableShape) -> Option<&'static str> {
    if shape.key.is_empty() {
        return Some("it has no primary key, its rows cannot be told apart");
    }
    if shape.columns.len() > COLUMNS_MAX {
        return Some("it has too many columns");
    }
    let foreign = |column: &usize| shape.columns.get(*column).is_none_or(|column| Collation::from_name(&column.collation).is_none());
    let mut joined = shape.key.iter().chain(shape.foreign_keys.iter().flat_map(|key| &key.columns));
    joined.any(foreign).then_some("a key column has a collation that an application defined")
}

/// Returns an attribute name made of a table's name.
fn attribute(table: &str) -> String {
    let name: String = table.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' }).collect();
    let name = match (name.strip_suffix("ies"), name.strip_suffix('s')) {
        (Some(stem), _) if stem.len() > 1 => format!("{stem}y"),
        (_, Some(stem)) if stem.len() > 2 && !stem.ends_with('s') => stem.to_owned(),
        _ => name,
    };
    if name.starts_with(|letter: char| letter.is_ascii_digit()) { format!("n{name}") } else { name }
}

fn spelled(table: &str, column: &str) -> String {
    format!("{}.{}", spell(table), spell(column))
}

fn must_exist(table: &str, column: &str) -> String {
    toml_string(&format!("{table}.{column}"))
}

fn some(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_named_after_tables() {
        for (table, name) in [
            ("Employees", "employee"),
            ("Territories", "territory"),
            ("shop", "shop"),
            ("a b", "a_b"),
            ("address", "address"),
            ("1st", "n1st"),
        ] {
            assert_eq!(attribute(table), name);
        }
    }
}
