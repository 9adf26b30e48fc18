//! Rewrites `CREATE TABLE` texts for an extract, in which columns and whole tables of the server may be missing.
//!
//! What refers to something that is missing goes: the column itself, foreign keys, UNIQUE and CHECK constraints and indexes. All the
//! rest stays byte for byte: the text is cut, never built anew. A generated column that needs a missing column is an error, because
//! without it the table would mean something else.

use super::ddl_tokens::{Kind, Token, significant};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Why a text could not be rewritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DdlError {
    /// The text is not understood.
    #[error("table {table}: its CREATE TABLE text is not understood near `{near}`")]
    NotUnderstood {
        /// The table.
        table: String,
        /// Text where reading stopped.
        near: String,
    },
    /// A generated column is computed from an omitted one.
    #[error("table {table}: generated column {column} is computed from {omitted}, which is omitted; omit {column} too")]
    Generated {
        /// The table.
        table: String,
        /// The generated column.
        column: String,
        /// The missing column.
        omitted: String,
    },
    /// The primary key names an omitted column.
    #[error("table {table}: {omitted} is part of the primary key and cannot be omitted")]
    Key {
        /// The table.
        table: String,
        /// The missing column.
        omitted: String,
    },
}

/// Which tables and columns an extract has. Names know no ASCII case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtractShape {
    tables: BTreeMap<String, Columns>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Columns {
    kept: BTreeSet<String>,
    omitted: BTreeSet<String>,
    /// Referring columns of foreign keys that may point at rows which the node does not have.
    dangling: BTreeSet<Vec<String>>,
}

impl ExtractShape {
    /// Adds a table with its columns: name and whether the extract has it.
    pub fn add<'a>(&mut self, table: &str, columns: impl IntoIterator<Item = (&'a str, bool)>) {
        let entry = self.tables.entry(table.to_ascii_lowercase()).or_default();
        for (name, kept) in columns {
            let set = if kept { &mut entry.kept } else { &mut entry.omitted };
            set.insert(name.to_ascii_lowercase());
        }
    }

    /// Takes a column out of the extract.
    pub fn omit(&mut self, table: &str, column: &str) {
        if let Some(columns) = self.tables.get_mut(&table.to_ascii_lowercase()) {
            let column = column.to_ascii_lowercase();
            columns.kept.remove(&column);
            columns.omitted.insert(column);
        }
    }

    /// Says that a foreign key may point at a row that the node does not have: the extract cannot declare it.
    pub fn dangle<'a>(&mut self, table: &str, columns: impl IntoIterator<Item = &'a str>) {
        let columns = columns.into_iter().map(str::to_ascii_lowercase).collect();
        self.tables.entry(table.to_ascii_lowercase()).or_default().dangling.insert(columns);
    }

    /// Returns whether the extract has that table.
    pub fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(&table.to_ascii_lowercase())
    }

    /// Returns whether the extract has that column.
    pub fn has_column(&self, table: &str, column: &str) -> bool {
        self.columns(table).is_some_and(|columns| columns.kept.contains(&column.to_ascii_lowercase()))
    }

    /// Returns whether some table of the extract lacks a column that the text names.
    pub fn any_omitted_in(&self, sql: &str) -> bool {
        let tokens = significant(sql);
        self.tables.values().any(|columns| mentioned(&tokens, &columns.omitted, Strings::AreNames).is_some())
    }

    fn columns(&self, table: &str) -> Option<&Columns> {
        self.tables.get(&table.to_ascii_lowercase())
    }
}

/// A text for the extract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The new text; the old one where nothing was missing.
    pub sql: String,
    /// What was left out, for people: one line each. Omitted columns are not listed, they were asked for.
    pub left_out: Vec<String>,
}

/// Rewrites the `CREATE TABLE` text of `table` for an extract of that shape.
pub fn rewrite_table(table: &str, sql: &str, shape: &ExtractShape) -> Result<Rewritten, DdlError> {
    let none = Columns::default();
    let columns = shape.columns(table).unwrap_or(&none);
    let tokens = significant(sql);
    let body = body_of(&tokens).ok_or_else(|| not_understood(table, tokens.first()))?;
    let mut rewriter = Rewriter { table, shape, omitted: &columns.omitted, dangling: &columns.dangling, left_out: Vec::new() };

    // The text between two commas is one element; its blanks go with it.
    let mut kept = Vec::new();
    let mut text_start = body.open_end;
    for element in &body.elements {
        let text_end = element.last().and_then(|_| body.text_end(&tokens, element)).unwrap_or(body.close_start);
        let raw = sql.get(text_start..text_end).unwrap_or_default();
        if let Some(cuts) = rewriter.element(element)? {
            kept.push(cut(raw, text_start, &cuts));
        }
        text_start = text_end + 1;
    }
    let head = sql.get(..body.open_end).unwrap_or_default();
    let tail = sql.get(body.close_start..).unwrap_or_default();
    Ok(Rewritten { sql: format!("{head}{}{tail}", kept.join(",")), left_out: rewriter.left_out })
}

/// Returns the omitted column that keeps a `CREATE INDEX` of `table` out of the extract, if any.
pub fn index_obstacle(table: &str, sql: &str, shape: &ExtractShape) -> Option<String> {
    let columns = shape.columns(table)?;
    let tokens = significant(sql);
    let open = tokens.iter().position(|token| token.is_sign("("))?;
    let close = group_end(&tokens, open);
    let terms = tokens.get(open..close).unwrap_or_default();
    let rest = tokens.get(close..).unwrap_or_default();
    mentioned(terms, &columns.omitted, Strings::AreNames).or_else(|| mentioned(rest, &columns.omitted, Strings::AreValues))
}

/// The parts of a `CREATE TABLE` text: what lies between the outer parentheses, cut at the commas.
struct Body<'a, 't> {
    /// Just behind the opening parenthesis, in bytes.
    open_end: usize,
    /// At the closing parenthesis, in bytes.
    close_start: usize,
    elements: Vec<&'t [Token<'a>]>,
}

impl<'a> Body<'a, '_> {
    /// Returns where the text of an element ends: at the comma behind it; `None` for the last one.
    fn text_end(&self, tokens: &[Token<'a>], element: &[Token<'a>]) -> Option<usize> {
        let last = element.last()?;
        let next = tokens.iter().find(|token| token.start >= last.end())?;
        next.is_sign(",").then_some(next.start)
    }
}

fn body_of<'a, 't>(tokens: &'t [Token<'a>]) -> Option<Body<'a, 't>> {
    if !tokens.first()?.is_word("CREATE") || tokens.iter().take(4).any(|token| token.is_word("VIRTUAL")) {
        return None;
    }
    let open = tokens.iter().position(|token| token.is_sign("("))?;
    let close = group_end(tokens, open).checked_sub(1)?;
    let inner = tokens.get(open + 1..close)?;
    let mut depth = 0usize;
    let elements: Vec<_> = inner
        .split(|token| {
            if token.is_sign("(") {
                depth += 1;
            } else if token.is_sign(")") {
                depth = depth.saturating_sub(1);
            }
            depth == 0 && token.is_sign(",")
        })
        .collect();
    if elements.iter().any(|element| element.is_empty()) {
        return None;
    }
    Some(Body { open_end: tokens.get(open)?.end(), close_start: tokens.get(close)?.start, elements })
}

/// Returns the index behind the group that opens at `open`; `open` itself if no group opens there.
fn group_end(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        if token.is_sign("(") {
            depth += 1;
        } else if token.is_sign(")") {
            depth = depth.saturating_sub(1);
        }
        if depth == 0 {
            return if index == open { open } else { index + 1 };
        }
    }
    tokens.len()
}

/// Returns the text without the cut ranges, which are offsets into the whole text.
fn cut(raw: &str, raw_start: usize, cuts: &[Range<usize>]) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    for range in cuts {
        out.push_str(raw.get(at..range.start - raw_start).unwrap_or_default());
        at = range.end - raw_start;
        let glued = |byte: Option<u8>| byte.is_some_and(|byte| !byte.is_ascii_whitespace());
        if glued(out.bytes().last()) && glued(raw.as_bytes().get(at).copied()) {
            out.push(' ');
        }
    }
    out.push_str(raw.get(at..).unwrap_or_default());
    out
}

/// Whether `'x'` can stand for a name: in lists of columns it can, in expressions it is a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strings {
    AreNames,
    AreValues,
}

/// Returns the first of the names that the tokens mention as a column.
fn mentioned(tokens: &[Token<'_>], names: &BTreeSet<String>, strings: Strings) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    for (index, token) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| tokens.get(before));
        let after = tokens.get(index + 1);
        let candidate = match token.kind {
            Kind::Word => {
                let function = after.is_some_and(|after| after.is_sign("("));
                let order = (token.is_word("ASC") || token.is_word("DESC")) && before.is_some_and(|before| !is_list_sign(before));
                !function && !order
            }
            Kind::Quoted => !after.is_some_and(|after| after.is_sign("(")),
            Kind::Text => strings == Strings::AreNames,
            Kind::Blank | Kind::Other => false,
        };
        let type_or_collation = before.is_some_and(|before| before.is_word("COLLATE") || before.is_word("AS"));
        if candidate && !type_or_collation && names.contains(&token.name().to_ascii_lowercase()) {
            return Some(token.name());
        }
    }
    None
}

fn is_list_sign(token: &Token<'_>) -> bool {
    token.is_sign("(") || token.is_sign(",")
}

fn not_understood(table: &str, token: Option<&Token<'_>>) -> DdlError {
    DdlError::NotUnderstood { table: table.to_owned(), near: token.map_or_else(String::new, |token| token.text.chars().take(40).collect()) }
}

struct Rewriter<'r> {
    table: &'r str,
    shape: &'r ExtractShape,
    omitted: &'r BTreeSet<String>,
    dangling: &'r BTreeSet<Vec<String>>,
    left_out: Vec<String>,
}

/// Words that begin a table constraint; all are reserved, so no column has such a name without quotes.
const TABLE_CONSTRAINTS: [&str; 5] = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"];

impl Rewriter<'_> {
    /// Returns the ranges to cut from an element; `None` if all of it goes.
    fn element(&mut self, tokens: &[Token<'_>]) -> Result<Option<Vec<Range<usize>>>, DdlError> {
        let Some(first) = tokens.first() else { return Ok(None) };
        if TABLE_CONSTRAINTS.iter().any(|word| first.is_word(word)) {
            return self.table_constraints(tokens);
        }
        let column = first.name();
        if self.omitted.contains(&column.to_ascii_lowercase()) {
            return Ok(None);
        }
        self.column(&column, tokens).map(Some)
    }

    /// Looks through the constraints of a column that stays.
    fn column(&mut self, column: &str, tokens: &[Token<'_>]) -> Result<Vec<Range<usize>>, DdlError> {
        let mut cuts = Vec::new();
        let mut named_at = None;
        // DEFERRABLE stands beside REFERENCES as a constraint of its own and belongs to the one before it.
        let mut reference_dropped = false;
        let mut index = 1;
        while let Some(token) = tokens.get(index) {
            let start = named_at.take().unwrap_or(index);
            let mut end = index + 1;
            if token.is_word("CONSTRAINT") {
                named_at = Some(start);
                end = index + 2;
            } else if token.is_word("REFERENCES") {
                end = reference_end(tokens, index);
                let obstacle = self.reference_obstacle(tokens.get(index..end).unwrap_or_default());
                let dangling = self.dangling.contains(&vec![column.to_ascii_lowercase()]);
                reference_dropped = obstacle.is_some() || dangling;
                if let Some(missing) = obstacle {
                    self.left_out.push(format!("{}.{column}: foreign key to {missing}, which the extract does not have", self.table));
                }
                if reference_dropped {
                    cuts.push(range(tokens, start, end));
                }
            } else if token.is_word("DEFERRABLE") || (token.is_word("NOT") && is_word_at(tokens, index + 1, "DEFERRABLE")) {
                end = deferrable_end(tokens, index);
                if reference_dropped {
                    cuts.push(range(tokens, start, end));
                }
            } else if token.is_word("CHECK") {
                end = group_end(tokens, index + 1).max(index + 1);
                if let Some(omitted) = mentioned(tokens.get(index..end).unwrap_or_default(), self.omitted, Strings::AreValues) {
                    self.left_out.push(format!("{}.{column}: CHECK that needs {omitted}, which is omitted", self.table));
                    cuts.push(range(tokens, start, end));
                }
            } else if token.is_word("AS") && tokens.get(index + 1).is_some_and(|next| next.is_sign("(")) {
                end = group_end(tokens, index + 1);
                if let Some(omitted) = mentioned(tokens.get(index + 1..end).unwrap_or_default(), self.omitted, Strings::AreValues) {
                    return Err(DdlError::Generated { table: self.table.to_owned(), column: column.to_owned(), omitted });
                }
            } else if token.is_sign("(") {
                end = group_end(tokens, index);
            }
            index = end.max(index + 1);
        }
        Ok(cuts)
    }

    /// Looks through table constraints; SQLite lets several follow each other without commas.
    fn table_constraints(&mut self, tokens: &[Token<'_>]) -> Result<Option<Vec<Range<usize>>>, DdlError> {
        let mut cuts = Vec::new();
        let mut kept = false;
        let mut index = 0;
        while let Some(token) = tokens.get(index) {
            let start = index;
            if token.is_word("CONSTRAINT") {
                index += 2;
            }
            let Some(token) = tokens.get(index) else {
                kept = true; // A name without a constraint, which SQLite allows.
                break;
            };
            let open = tokens.iter().enumerate().skip(index).find(|(_, token)| token.is_sign("(")).map(|(open, _)| open);
            let Some(open) = open else { return Err(not_understood(self.table, Some(token))) };
            let mut end = group_end(tokens, open);
            let columns = tokens.get(open..end).unwrap_or_default();
            let left_out = if token.is_word("PRIMARY") {
                if let Some(omitted) = mentioned(columns, self.omitted, Strings::AreNames) {
                    return Err(DdlError::Key { table: self.table.to_owned(), omitted });
                }
                None
            } else if token.is_word("UNIQUE") {
                mentioned(columns, self.omitted, Strings::AreNames).map(|omitted| format!("UNIQUE that needs {omitted}, which is omitted"))
            } else if token.is_word("CHECK") {
                mentioned(columns, self.omitted, Strings::AreValues).map(|omitted| format!("CHECK that needs {omitted}, which is omitted"))
            } else if token.is_word("FOREIGN") {
                let references = end;
                if !is_word_at(tokens, references, "REFERENCES") {
                    return Err(not_understood(self.table, tokens.get(references)));
                }
                end = reference_end(tokens, references);
                if is_word_at(tokens, end, "DEFERRABLE") || (is_word_at(tokens, end, "NOT") && is_word_at(tokens, end + 1, "DEFERRABLE")) {
                    end = deferrable_end(tokens, end);
                }
                let names = columns.split(|token| token.is_sign(",") || token.is_sign("(") || token.is_sign(")"));
                let names: Vec<String> = names.filter_map(|name| Some(name.first()?.name().to_ascii_lowercase())).collect();
                if self.dangling.contains(&names) {
                    // Asked for in the definition, so it is not listed.
                    cuts.push(range(tokens, start, end));
                    index = end;
                    continue;
                }
                mentioned(columns, self.omitted, Strings::AreNames)
                    .or_else(|| self.reference_obstacle(tokens.get(references..end).unwrap_or_default()))
                    .map(|missing| format!("foreign key to {missing}, which the extract does not have"))
            } else {
                return Err(not_understood(self.table, Some(token)));
            };
            if is_word_at(tokens, end, "ON") && is_word_at(tokens, end + 1, "CONFLICT") {
                end = (end + 3).min(tokens.len());
            }
            match left_out {
                Some(what) => {
                    self.left_out.push(format!("{}: {what}", self.table));
                    cuts.push(range(tokens, start, end));
                }
                None => kept = true,
            }
            index = end;
        }
        Ok(kept.then_some(cuts))
    }

    /// Returns what of the reference's target the extract lacks; the tokens begin at REFERENCES.
    fn reference_obstacle(&self, tokens: &[Token<'_>]) -> Option<String> {
        let target = tokens.get(1)?.name();
        if !self.shape.has_table(&target) {
            return Some(target);
        }
        if !tokens.get(2).is_some_and(|token| token.is_sign("(")) {
            return None; // The primary key, which is always there.
        }
        let list = tokens.get(3..group_end(tokens, 2).saturating_sub(1))?;
        let missing = list.split(|token| token.is_sign(",")).filter_map(|column| column.first().map(Token::name));
        missing.into_iter().find(|column| !self.shape.has_column(&target, column)).map(|column| format!("{target}.{column}"))
    }
}

fn is_word_at(tokens: &[Token<'_>], index: usize, word: &str) -> bool {
    tokens.get(index).is_some_and(|token| token.is_word(word))
}

/// Returns the bytes that tokens `start..end` take.
fn range(tokens: &[Token<'_>], start: usize, end: usize) -> Range<usize> {
    let first = tokens.get(start).map_or(0, |token| token.start);
    let last = end.checked_sub(1).and_then(|last| tokens.get(last)).or(tokens.last()).map_or(first, Token::end);
    first..last.max(first)
}

/// Returns the index behind `REFERENCES table [(columns)]` and its ON and MATCH tails.
fn reference_end(tokens: &[Token<'_>], references: usize) -> usize {
    let mut end = (references + 2).min(tokens.len());
    if tokens.get(end).is_some_and(|token| token.is_sign("(")) {
        end = group_end(tokens, end);
    }
    loop {
        if is_word_at(tokens, end, "MATCH") {
            end += 2;
        } else if is_word_at(tokens, end, "ON") && !is_word_at(tokens, end + 1, "CONFLICT") {
            // ON DELETE CASCADE | RESTRICT | SET NULL | SET DEFAULT | NO ACTION
            let two = is_word_at(tokens, end + 2, "SET") || is_word_at(tokens, end + 2, "NO");
            end += if two { 4 } else { 3 };
        } else {
            return end.min(tokens.len());
        }
    }
}

/// Returns the index behind `[NOT] DEFERRABLE [INITIALLY DEFERRED | IMMEDIATE]`.
fn deferrable_end(tokens: &[Token<'_>], start: usize) -> usize {
    let mut end = start + if is_word_at(tokens, start, "NOT") { 2 } else { 1 };
    if is_word_at(tokens, end, "INITIALLY") {
        end += 2;
    }
    end.min(tokens.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn shape(tables: &[(&str, &[&str], &[&str])]) -> ExtractShape {
        let mut shape = ExtractShape::default();
        for (table, kept, omitted) in tables {
            shape.add(table, kept.iter().map(|name| (*name, true)).chain(omitted.iter().map(|name| (*name, false))));
        }
        shape
    }

    /// The result must be SQL: each text is run.
    fn rewritten(table: &str, sql: &str, shape: &ExtractShape) -> Rewritten {
        let result = rewrite_table(table, sql, shape).unwrap();
        let database = Connection::open_in_memory().unwrap();
        database.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DQS_DDL, false).unwrap();
        database.execute_batch(&result.sql).unwrap_or_else(|error| panic!("{error}\n{}", result.sql));
        result
    }

    #[test]
    fn a_dangling_foreign_key_is_not_declared_on_the_node() {
        let mut shape = ExtractShape::default();
        shape.add("parent", [("id", true), ("a", true), ("b", true)]);
        shape.add("child", [("id", true), ("p", true), ("q", true), ("x", true), ("y", true)]);
        shape.dangle("child", ["P"]);
        shape.dangle("child", ["x", "y"]);
        let sql = "CREATE TABLE child(id INTEGER PRIMARY KEY, p INT REFERENCES parent(id) ON DELETE CASCADE DEFERRABLE NOT NULL, \
                   q INT REFERENCES parent, x, y, FOREIGN KEY (\"X\", y) REFERENCES parent(a, b) NOT DEFERRABLE, FOREIGN KEY (q) REFERENCES parent)";
        let rewritten = rewrite_table("child", sql, &shape).unwrap();
        let wanted = "CREATE TABLE child(id INTEGER PRIMARY KEY, p INT   NOT NULL, q INT REFERENCES parent, x, y, FOREIGN KEY (q) REFERENCES parent)";
        assert_eq!(rewritten.sql, wanted);
        assert!(rewritten.left_out.is_empty());
    }

    #[test]
    fn a2_nothing_missing_means_the_same_bytes() {
        let sql = "CREATE TABLE \"Order Details\" ( -- the lines, of an order\n\
                   \"OrderID\" INTEGER CONSTRAINT \"o\" REFERENCES [Orders](`OrderID`) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,\n\
                   [Product ID] INT NOT NULL DEFAULT (1+(2)), /* , ) */ price REAL CHECK (price >= 0) COLLATE BINARY,\n\
                   total AS (price * 2) STORED, note TEXT DEFAULT 'it''s, (fine)' COLLATE NOCASE UNIQUE ON CONFLICT REPLACE,\n\
                   PRIMARY KEY (\"OrderID\", [Product ID]) UNIQUE (note, price) -- last, one\n) WITHOUT ROWID";
        let shape = shape(&[("order details", &["orderid", "product id", "price", "total", "note"], &[]), ("Orders", &["OrderID"], &[])]);
        let result = rewritten("Order Details", sql, &shape);
        assert_eq!(result.sql, sql);
        assert_eq!(result.left_out, Vec::<String>::new());
    }

    #[test]
    fn a2_omitted_columns_take_their_constraints_along() {
        let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, -- key, first\n  a TEXT CHECK (length(a) < 9) CONSTRAINT c1 CHECK(a <> \"Secret\"),\n  \
                   'secret' TEXT NOT NULL, b INT DEFAULT 5 CONSTRAINT c2 CHECK (b IN (1, 'secret', 5)),\n  g INT AS (b+1),\n  \
                   UNIQUE (a, [SECRET]) CHECK (b > 0) CONSTRAINT c3 CHECK (`secret` > b), UNIQUE (b COLLATE NOCASE, a) ON CONFLICT FAIL,\n  \
                   CHECK (secret(1) OR 1)\n)";
        // `secret(1)` is a function, not the column; the text that SQLite runs cannot have it.
        let sql = sql.replace("secret(1) OR 1", "abs(1)");
        let shape = shape(&[("t", &["id", "a", "b", "g"], &["secret"])]);
        let result = rewritten("t", &sql, &shape);
        assert_eq!(
            result.sql,
            "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, -- key, first\n  a TEXT CHECK (length(a) < 9) , b INT DEFAULT 5 CONSTRAINT c2 CHECK (b IN (1, 'secret', 5)),\n  \
             g INT AS (b+1),\n   CHECK (b > 0) , UNIQUE (b COLLATE NOCASE, a) ON CONFLICT FAIL,\n  CHECK (abs(1))\n)"
        );
        assert_eq!(result.left_out.len(), 3, "{:?}", result.left_out);
    }

    #[test]
    fn a2_foreign_keys_to_what_is_missing_go_with_all_their_tails() {
        let sql = "CREATE TABLE child(id INT PRIMARY KEY,\
                   a INT NOT NULL CONSTRAINT fa REFERENCES gone(id) ON DELETE SET NULL ON UPDATE NO ACTION MATCH FULL NOT DEFERRABLE INITIALLY IMMEDIATE UNIQUE,\
                   b INT REFERENCES kept(id) ON DELETE CASCADE DEFERRABLE,\
                   c INT/*x*/REFERENCES\"kept\"(hidden)ON UPDATE SET DEFAULT DEFERRABLE INITIALLY DEFERRED NOT NULL,\
                   d INT DEFAULT(3)REFERENCES gone CHECK(d>0), e INT REFERENCES kept,\
                   CONSTRAINT f1 FOREIGN KEY (a, b) REFERENCES gone (x, y) ON DELETE NO ACTION DEFERRABLE INITIALLY DEFERRED,\
                   FOREIGN KEY (b) REFERENCES kept(\"id\") ON UPDATE CASCADE MATCH SIMPLE, FOREIGN KEY (hid) REFERENCES kept,\
                   FOREIGN KEY (e) REFERENCES child(id) FOREIGN KEY (e) REFERENCES gone, hid_check INT) STRICT";
        let sql = sql.replace(", hid_check INT", "").replace("d INT DEFAULT", "hid INT REFERENCES kept, d INT DEFAULT");
        let shape = shape(&[("child", &["id", "a", "b", "c", "d", "e"], &["hid"]), ("kept", &["id"], &["hidden"])]);
        let result = rewritten("child", &sql, &shape);
        assert_eq!(
            result.sql,
            "CREATE TABLE child(id INT PRIMARY KEY,a INT NOT NULL   UNIQUE,b INT REFERENCES kept(id) ON DELETE CASCADE DEFERRABLE,\
             c INT/*x*/  NOT NULL, d INT DEFAULT(3) CHECK(d>0), e INT REFERENCES kept,\
             FOREIGN KEY (b) REFERENCES kept(\"id\") ON UPDATE CASCADE MATCH SIMPLE,FOREIGN KEY (e) REFERENCES child(id) ) STRICT"
        );
        assert_eq!(result.left_out.len(), 6, "{:?}", result.left_out);
        // A kept reference must not inherit the tail of a dropped one.
        let deferred =
            rewritten("child", "CREATE TABLE child(e INT REFERENCES kept REFERENCES gone DEFERRABLE INITIALLY DEFERRED)", &shape);
        assert_eq!(deferred.sql, "CREATE TABLE child(e INT REFERENCES kept  )");
    }

    #[test]
    fn a2_first_and_last_columns_can_go() {
        let shape = shape(&[("t", &["b"], &["a", "c"])]);
        for sql in ["CREATE TABLE t(a,b PRIMARY KEY,c)", "CREATE TABLE \"t\" (\n a INT, -- a, (\n b TEXT PRIMARY KEY, -- b\n c -- c )\n)"] {
            let result = rewritten("t", sql, &shape);
            let database = Connection::open_in_memory().unwrap();
            database.execute_batch(&result.sql).unwrap();
            let columns: String =
                database.query_row("SELECT group_concat(name) FROM pragma_table_xinfo('t')", [], |row| row.get(0)).unwrap();
            assert_eq!(columns, "b", "{}", result.sql);
        }
    }

    #[test]
    fn a2_generated_and_key_columns_refuse_by_name() {
        let shape = shape(&[("t", &["id", "g"], &["a"])]);
        let error =
            rewrite_table("t", "CREATE TABLE t(id INTEGER PRIMARY KEY, a INT, g INT GENERATED ALWAYS AS (\"a\" + 1) VIRTUAL)", &shape);
        assert_eq!(error, Err(DdlError::Generated { table: "t".into(), column: "g".into(), omitted: "a".into() }));
        let error = rewrite_table("t", "CREATE TABLE t(id INT, a INT, PRIMARY KEY (id, a))", &shape);
        assert_eq!(error, Err(DdlError::Key { table: "t".into(), omitted: "a".into() }));
        for sql in [
            "CREATE VIRTUAL TABLE t USING fts5(a)",
            "CREATE TABLE t",
            "DROP TABLE t",
            "",
            "CREATE TABLE t(",
            "CREATE TABLE t(id, FOREIGN KEY)",
        ] {
            assert!(matches!(rewrite_table("t", sql, &shape), Err(DdlError::NotUnderstood { .. })), "{sql}");
        }
    }

    #[test]
    fn a2_indexes_on_omitted_columns_are_found() {
        let shape = shape(&[("t", &["id", "day"], &["Secret", "date"])]);
        let obstacle = |sql| index_obstacle("t", sql, &shape);
        assert_eq!(obstacle("CREATE INDEX secret ON t(id)"), None, "the index's own name");
        assert_eq!(obstacle("CREATE INDEX i ON t(date(day) DESC) WHERE day <> 'secret'"), None);
        assert_eq!(obstacle("CREATE INDEX i ON t(id, [secret])").as_deref(), Some("secret"));
        assert_eq!(obstacle("CREATE INDEX i ON t('SECRET')").as_deref(), Some("SECRET"));
        assert_eq!(obstacle("CREATE UNIQUE INDEX i ON t(id) WHERE \"date\" > 1").as_deref(), Some("date"));
    }
}
