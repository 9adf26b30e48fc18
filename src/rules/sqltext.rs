//! A light reading of SQL text, for advice only: which tables a trigger writes, which columns a CHECK names.
//!
//! Never decides what is replicated. Words in strings and comments do not count.

/// A word or sign of an SQL text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// A bare or quoted name, or a keyword.
    Word { text: String, quoted: bool, start: usize },
    /// Any other sign, and literals as `'`.
    Sign { sign: char, start: usize },
}

impl Piece {
    fn is_word(&self, word: &str) -> bool {
        matches!(self, Piece::Word { text, quoted: false, .. } if text.eq_ignore_ascii_case(word))
    }

    fn is_sign(&self, wanted: char) -> bool {
        matches!(self, Piece::Sign { sign, .. } if *sign == wanted)
    }

    fn start(&self) -> usize {
        match self {
            Piece::Word { start, .. } | Piece::Sign { start, .. } => *start,
        }
    }
}

/// Cuts SQL into words and signs.
pub(crate) fn pieces(sql: &str) -> Vec<Piece> {
    let mut found = Vec::new();
    let mut characters = sql.char_indices().peekable();
    while let Some((start, first)) = characters.next() {
        match first {
            '-' if sql.get(start..).is_some_and(|rest| rest.starts_with("--")) => {
                while characters.next_if(|(_, c)| *c != '\n').is_some() {}
            }
            '/' if sql.get(start..).is_some_and(|rest| rest.starts_with("/*")) => {
                let end = sql.get(start + 2..).and_then(|rest| rest.find("*/")).map_or(sql.len(), |end| start + end + 4);
                while characters.next_if(|(at, _)| *at < end).is_some() {}
            }
            '\'' | '"' | '`' | '[' => {
                let close = if first == '[' { ']' } else { first };
                let mut text = String::new();
                while let Some((_, c)) = characters.next() {
                    if c != close {
                        text.push(c);
                    } else if close != ']' && characters.next_if(|(_, next)| *next == close).is_some() {
                        text.push(close);
                    } else {
                        break;
                    }
                }
                found.push(if first == '\'' { Piece::Sign { sign: '\'', start } } else { Piece::Word { text, quoted: true, start } });
            }
            c if c.is_alphanumeric() || c == '_' => {
                let mut text = String::from(c);
                while let Some((_, c)) = characters.next_if(|(_, c)| c.is_alphanumeric() || *c == '_' || *c == '$') {
                    text.push(c);
                }
                found.push(Piece::Word { text, quoted: false, start });
            }
            c if c.is_whitespace() => {}
            sign => found.push(Piece::Sign { sign, start }),
        }
    }
    found
}

/// Returns the names and keywords of an SQL text.
pub(crate) fn names(sql: &str) -> impl Iterator<Item = String> {
    pieces(sql).into_iter().filter_map(|piece| match piece {
        Piece::Word { text, .. } => Some(text),
        Piece::Sign { .. } => None,
    })
}

/// Returns the expressions of all CHECK clauses of a CREATE TABLE.
pub(crate) fn checks(sql: &str) -> Vec<String> {
    let pieces = pieces(sql);
    let mut found = Vec::new();
    for (position, piece) in pieces.iter().enumerate() {
        let Some(open) = pieces.get(position + 1).filter(|next| piece.is_word("CHECK") && next.is_sign('(')) else { continue };
        let mut depth = 0usize;
        for piece in pieces.iter().skip(position + 1) {
            depth += usize::from(piece.is_sign('('));
            if piece.is_sign(')') {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    found.extend(sql.get(open.start() + 1..piece.start()).map(|check| check.trim().to_owned()));
                    break;
                }
            }
        }
    }
    found
}

/// What one statement of a trigger writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// The table.
    pub(crate) table: String,
    /// The columns that it sets in rows that are there; `None` if it inserts or deletes rows.
    pub(crate) columns: Option<Vec<String>>,
}

/// Returns what the body of a CREATE TRIGGER inserts, updates and deletes, each once.
pub(crate) fn writes(sql: &str) -> Vec<Write> {
    let pieces = pieces(sql);
    let body = pieces.iter().position(|piece| piece.is_word("BEGIN")).unwrap_or(pieces.len());
    let word = |position: usize, wanted: &str| pieces.get(position).is_some_and(|piece| piece.is_word(wanted));
    let mut found: Vec<Write> = Vec::new();
    // Where an upsert updates: the table of the INSERT before it.
    let mut inserted: Option<String> = None;
    for position in body..pieces.len() {
        let is_update = word(position, "UPDATE");
        let is_upsert = is_update && word(position.wrapping_sub(1), "DO");
        let target = if word(position, "INTO") || (word(position, "FROM") && word(position.wrapping_sub(1), "DELETE")) {
            position + 1
        } else if is_update {
            position + if word(position + 1, "OR") { 3 } else { 1 }
        } else {
            continue;
        };
        let table = match pieces.get(target) {
            _ if is_upsert => inserted.clone(),
            Some(Piece::Word { text, .. }) => Some(text.clone()),
            _ => None,
        };
        let Some(table) = table else { continue };
        if word(position, "INTO") {
            inserted = Some(table.clone());
        }
        let write = Write { table, columns: is_update.then(|| set_columns(pieces.get(target..).unwrap_or_default())) };
        if !found.contains(&write) {
            found.push(write);
        }
    }
    found
}

/// Returns the columns that the SET of an UPDATE names: each word before a `=` that begins an assignment, or each in a list before it.
fn set_columns(pieces: &[Piece]) -> Vec<String> {
    let Some(set) = pieces.iter().position(|piece| piece.is_word("SET")) else { return Vec::new() };
    let mut columns = Vec::new();
    let (mut depth, mut begins, mut is_list) = (0usize, true, false);
    for (place, piece) in pieces.iter().enumerate().skip(set + 1) {
        match piece {
            Piece::Sign { sign: ';', .. } => break,
            Piece::Sign { sign: '(', .. } => {
                is_list |= depth == 0 && begins;
                depth += 1;
            }
            Piece::Sign { sign: ')', .. } => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    (is_list, begins) = (false, false);
                }
            }
            Piece::Sign { sign: ',', .. } => begins |= depth == 0,
            Piece::Word { .. } if depth == 0 && ["WHERE", "FROM", "RETURNING"].iter().any(|end| piece.is_word(end)) => break,
            Piece::Word { text, .. } if is_list || (begins && pieces.get(place + 1).is_some_and(|next| next.is_sign('='))) => {
                columns.push(text.clone());
                begins = is_list;
            }
            _ => begins = begins && is_list,
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_and_their_columns() {
        let sql = "CREATE TABLE [P]([UnitPrice] NUMERIC CHECK ([UnitPrice]>=(0)), note TEXT DEFAULT 'CHECK (x)', CHECK (a > (b)))";
        assert_eq!(checks(sql), ["[UnitPrice]>=(0)", "a > (b)"]);
        assert!(names(&checks(sql)[0]).any(|name| name == "UnitPrice"));
    }

    #[test]
    fn r11_tables_that_a_trigger_writes() {
        let sql =
            "CREATE TRIGGER t AFTER UPDATE OF q ON a BEGIN UPDATE OR IGNORE [b x] SET c = 1; -- UPDATE z\n INSERT INTO \"d\" VALUES (1)
                   ON CONFLICT DO UPDATE SET x = 1, y = y + 1; DELETE FROM e WHERE f = 'UPDATE g'; SELECT 1 FROM h;
                   UPDATE i SET (j, \"k l\") = (SELECT m, n FROM o WHERE p = 1), r = (s = 2), t = u = v, w = max(x, y) WHERE z = 1, aa = 3;
                   UPDATE e SET b = CASE WHEN NEW.c = 1 THEN 2 END FROM dd WHERE ee = 1; END";
        let write = |table: &str, columns: Option<&[&str]>| Write {
            table: table.to_owned(),
            columns: columns.map(|columns| columns.iter().map(|column| (*column).to_owned()).collect()),
        };
        let expected = [
            write("b x", Some(&["c"])),
            write("d", None),
            write("d", Some(&["x", "y"])),
            write("e", None),
            write("i", Some(&["j", "k l", "r", "t", "w"])),
            write("e", Some(&["b"])),
        ];
        assert_eq!(writes(sql), expected);
    }
}
