//! The rule language: joins as path strings, read from left to right.
//!
//! ```text
//! T.col { -> U(col [, col = literal]).col } = node.NAME      a visibility rule by keys
//! everyone | nobody | referenced [by Object, ...]            the other rules
//! node.x { -> U(col [, col = literal]).col | ->* ... }       a derived node attribute
//! col within N days                                          a time window
//! ```
//!
//! Only chains of equi-joins can be said, so whatever parses can be maintained incrementally. Nothing here knows a schema.
//! Invariant: every name and error carries its byte offset within the string; no input makes the parser panic.

use crate::model::value::Value;
use crate::rules::lexer::{Token, tokenize};

/// A mistake in a rule string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LanguageError {
    /// Byte offset within the string.
    pub at: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

/// A name and where it begins within the string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name, without quotes.
    pub text: String,
    /// Byte offset.
    pub at: usize,
}

/// A parsed visibility rule.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// `everyone`
    Everyone,
    /// `nobody`
    Nobody,
    /// `referenced [by A, B]`; empty = by any object.
    Referenced(Vec<Name>),
    /// `T.col -> U(col).col = node.NAME`
    Path(Path),
}

/// `T.col { -> U(col).col } = node.NAME`
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// The object's primary table.
    pub table: Name,
    /// Columns where the chain starts.
    pub start: Vec<Name>,
    /// The joins.
    pub joins: Vec<Join>,
    /// The node attribute.
    pub attribute: Name,
}

/// `-> U(col, col = literal).col`
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    /// The table joined.
    pub table: Name,
    /// Its columns that equal what stands to the left, in order.
    pub join: Vec<Name>,
    /// `col = literal`
    pub filters: Vec<(Name, Literal)>,
    /// Columns that go on to the right.
    pub out: Vec<Name>,
    /// `->*`
    pub recursive: bool,
    /// Offset of the arrow.
    pub at: usize,
}

/// A literal and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Literal {
    /// Its value.
    pub value: Value,
    /// Byte offset.
    pub at: usize,
}

/// `node.x -> U(col).col ->* ..`
#[derive(Debug, Clone, PartialEq)]
pub struct NodePath {
    /// The attribute where the chain starts.
    pub from: Name,
    /// The joins; never empty.
    pub joins: Vec<Join>,
}

/// `col within N days`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowText {
    /// The date column.
    pub column: Name,
    /// Its length.
    pub days: u32,
}

/// `Table.column` or `Table.(a, b)`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The table; `None` where only columns stand.
    pub table: Option<Name>,
    /// The columns.
    pub columns: Vec<Name>,
}

/// Longest string that is parsed, in bytes.
const TEXT_BYTES_MAX: usize = 4 << 10;
/// Longest window, in days: about 270 years.
const WINDOW_DAYS_MAX: u32 = 99_999;

/// Parses the string of a visibility rule.
pub fn parse_rule(text: &str) -> Result<Rule, LanguageError> {
    let mut parser = Parser::new(text)?;
    let first = parser.name("a table, `everyone`, `nobody` or `referenced`")?;
    let keyword = !parser.quoted_before() && !matches!(parser.peek(), Some(Token::Dot));
    if keyword {
        let rule = match first.text.to_ascii_lowercase().as_str() {
            "everyone" => Rule::Everyone,
            "nobody" => Rule::Nobody,
            "referenced" => Rule::Referenced(parser.referenced_by()?),
            _ => {
                return Err(
                    parser.unexpected("`.` and a column", Some("a rule begins with Table.column, or is everyone, nobody or referenced"))
                );
            }
        };
        parser.end()?;
        return Ok(rule);
    }
    if first.text.eq_ignore_ascii_case("node") && !parser.quoted_before() {
        return Err(LanguageError {
            at: first.at,
            message: "a rule begins at the object's table, node.NAME stands on the right".into(),
            hint: Some("Table.column = node.NAME".into()),
        });
    }
    let start = parser.dot_columns()?;
    let joins = parser.joins()?;
    if let Some(join) = joins.iter().find(|join| join.recursive) {
        return Err(LanguageError {
            at: join.at,
            message: "`->*` stands on the node side only".into(),
            hint: Some("declare the set under [node]:  team = 'node.position ->* position(parent_id).id'".into()),
        });
    }
    parser.expect(&Token::Equals, "`->` or `= node.NAME`")?;
    let node = parser.name("node.NAME")?;
    if !node.text.eq_ignore_ascii_case("node") {
        return Err(LanguageError {
            at: node.at,
            message: format!("a rule ends with `= node.NAME`, not `{}`", node.text),
            hint: Some("declare the value under [node], or compare with a literal in `where`".into()),
        });
    }
    parser.expect(&Token::Dot, "`.` and the name of a node attribute")?;
    let attribute = parser.name("the name of a node attribute")?;
    parser.end()?;
    Ok(Rule::Path(Path { table: first, start, joins, attribute }))
}

/// Parses the path of a derived node attribute.
pub fn parse_node_path(text: &str) -> Result<NodePath, LanguageError> {
    let mut parser = Parser::new(text)?;
    let node = parser.name("node.NAME")?;
    if !node.text.eq_ignore_ascii_case("node") {
        return Err(LanguageError {
            at: node.at,
            message: format!("the path of a node attribute begins with node.NAME, not `{}`", node.text),
            hint: Some("node.employee -> employee(id).position_id".into()),
        });
    }
    parser.expect(&Token::Dot, "`.` and the name of a node attribute")?;
    let from = parser.name("the name of a node attribute")?;
    let joins = parser.joins()?;
    if joins.is_empty() {
        return Err(parser.unexpected("`->` and a table", Some("node.employee -> employee(id).position_id")));
    }
    parser.end()?;
    Ok(NodePath { from, joins })
}

/// Parses `col within N days`.
pub fn parse_window(text: &str) -> Result<WindowText, LanguageError> {
    let form = Some("column within 90 days");
    let mut parser = Parser::new(text)?;
    let column = parser.name("a date column")?;
    parser.word("within", form)?;
    let at = parser.offset();
    let days = match parser.next() {
        Some(Token::Number(number)) => number.parse::<u32>().ok().filter(|days| (1..=WINDOW_DAYS_MAX).contains(days)),
        _ => return Err(LanguageError { at, message: "expected a number of days".into(), hint: form.map(str::to_owned) }),
    };
    let Some(days) = days else {
        return Err(LanguageError { at, message: format!("a window has 1 to {WINDOW_DAYS_MAX} whole days"), hint: None });
    };
    match parser.peek() {
        Some(Token::Name { text, .. }) if text.eq_ignore_ascii_case("day") || text.eq_ignore_ascii_case("days") => {
            parser.next();
        }
        _ => return Err(parser.unexpected("`days`", form)),
    }
    parser.end()?;
    Ok(WindowText { column, days })
}

/// Parses `Table.column`, `Table.(a, b)`, `column` or `(a, b)`.
pub fn parse_columns(text: &str) -> Result<Columns, LanguageError> {
    let mut parser = Parser::new(text)?;
    if matches!(parser.peek(), Some(Token::Open)) {
        let columns = parser.column_list()?;
        parser.end()?;
        return Ok(Columns { table: None, columns });
    }
    let first = parser.name("a table or column")?;
    let columns = match parser.peek() {
        Some(Token::Dot) => Columns { table: Some(first), columns: parser.dot_columns()? },
        _ => Columns { table: None, columns: vec![first] },
    };
    parser.end()?;
    Ok(columns)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    end: usize,
    next: usize,
}

impl Parser {
    fn new(text: &str) -> Result<Parser, LanguageError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(LanguageError { at: 0, message: format!("longer than {TEXT_BYTES_MAX} bytes"), hint: None });
        }
        Ok(Parser { tokens: tokenize(text)?, end: text.trim_end().len(), next: 0 })
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.next += usize::from(token.is_some());
        token
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    /// Whether the name just read was quoted, so that it is no keyword.
    fn quoted_before(&self) -> bool {
        matches!(self.tokens.get(self.next.wrapping_sub(1)), Some((_, Token::Name { quoted: true, .. })))
    }

    fn unexpected(&self, wanted: &str, hint: Option<&str>) -> LanguageError {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some(Token::Name { text, .. } | Token::Number(text)) => format!("`{text}`"),
            Some(Token::Text(text)) => format!("'{text}'"),
            Some(Token::Dot) => "`.`".into(),
            Some(Token::Comma) => "`,`".into(),
            Some(Token::Open) => "`(`".into(),
            Some(Token::Close) => "`)`".into(),
            Some(Token::Arrow) => "`->`".into(),
            Some(Token::ArrowStar) => "`->*`".into(),
            Some(Token::Equals) => "`=`".into(),
        };
        LanguageError { at: self.offset(), message: format!("expected {wanted}, found {found}"), hint: hint.map(str::to_owned) }
    }

    fn expect(&mut self, token: &Token, wanted: &str) -> Result<(), LanguageError> {
        if self.peek() == Some(token) {
            self.next += 1;
            return Ok(());
        }
        Err(self.unexpected(wanted, None))
    }

    fn word(&mut self, word: &str, hint: Option<&str>) -> Result<(), LanguageError> {
        match self.peek() {
            Some(Token::Name { text, quoted: false }) if text.eq_ignore_ascii_case(word) => {
                self.next += 1;
                Ok(())
            }
            _ => Err(self.unexpected(&format!("`{word}`"), hint)),
        }
    }

    fn name(&mut self, wanted: &str) -> Result<Name, LanguageError> {
        let at = self.offset();
        match self.peek() {
            Some(Token::Name { text, .. }) => {
                let text = text.clone();
                self.next += 1;
                Ok(Name { text, at })
            }
            _ => Err(self.unexpected(wanted, None)),
        }
    }

    fn end(&mut self) -> Result<(), LanguageError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("the end", None)),
        }
    }

    fn referenced_by(&mut self) -> Result<Vec<Name>, LanguageError> {
        let mut names = Vec::new();
        if self.peek().is_some() {
            self.word("by", Some("referenced by Orders, Invoices"))?;
            names.push(self.name("the name of an object")?);
            while self.peek() == Some(&Token::Comma) {
                self.next += 1;
                names.push(self.name("the name of an object")?);
            }
        }
        Ok(names)
    }

    fn dot_columns(&mut self) -> Result<Vec<Name>, LanguageError> {
        self.expect(&Token::Dot, "`.` and a column")?;
        match self.peek() {
            Some(Token::Open) => self.column_list(),
            _ => Ok(vec![self.name("a column")?]),
        }
    }

    fn column_list(&mut self) -> Result<Vec<Name>, LanguageError> {
        self.expect(&Token::Open, "`(`")?;
        let mut names = vec![self.name("a column")?];
        while self.peek() == Some(&Token::Comma) {
            self.next += 1;
            names.push(self.name("a column")?);
        }
        self.expect(&Token::Close, "`,` or `)`")?;
        Ok(names)
    }

    fn joins(&mut self) -> Result<Vec<Join>, LanguageError> {
        let mut joins = Vec::new();
        loop {
            let at = self.offset();
            let recursive = match self.peek() {
                Some(Token::Arrow) => false,
                Some(Token::ArrowStar) => true,
                _ => return Ok(joins),
            };
            self.next += 1;
            let table = self.name("a table")?;
            self.expect(&Token::Open, "`(` and the column to join by")?;
            let (mut join, mut filters) = (Vec::new(), Vec::new());
            loop {
                let column = self.name("a column")?;
                if self.peek() == Some(&Token::Equals) {
                    self.next += 1;
                    filters.push((column, self.literal()?));
                } else if filters.is_empty() {
                    join.push(column);
                } else {
                    return Err(self.unexpected("`=` and a literal", Some("columns to join by stand before the `column = literal` ones")));
                }
                if self.peek() != Some(&Token::Comma) {
                    break;
                }
                self.next += 1;
            }
            if join.is_empty() {
                return Err(LanguageError {
                    at: table.at,
                    message: format!("`{}(..)` names no column to join by", table.text),
                    hint: Some(format!("{}(column, status = 'x').column", table.text)),
                });
            }
            self.expect(&Token::Close, "`,` or `)`")?;
            let out = self.dot_columns()?;
            joins.push(Join { table, join, filters, out, recursive, at });
        }
    }

    fn literal(&mut self) -> Result<Literal, LanguageError> {
        let at = self.offset();
        let value = match self.peek() {
            Some(Token::Text(text)) => Value::text(text),
            // In the place of a literal double quotes mean a text, since TOML's single quotes are often taken.
            Some(Token::Name { text, quoted: true }) => Value::text(text),
            Some(Token::Name { text, .. }) if text.eq_ignore_ascii_case("null") => {
                return Err(LanguageError {
                    at,
                    message: "nothing is equal to NULL".into(),
                    hint: Some("say it in `where`:  where = \"column IS NULL\"".into()),
                });
            }
            Some(Token::Number(number)) => match (number.parse::<i64>(), number.parse::<f64>()) {
                (Ok(integer), _) => Value::Integer(integer),
                (_, Ok(real)) if real.is_finite() => Value::Real(real),
                _ => return Err(LanguageError { at, message: format!("`{number}` is not a number"), hint: None }),
            },
            _ => return Err(self.unexpected("a number or a text in quotes", None)),
        };
        self.next += 1;
        Ok(Literal { value, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        match parse_rule(text).unwrap() {
            Rule::Path(path) => path,
            other => panic!("{other:?}"),
        }
    }

    fn texts(names: &[Name]) -> Vec<&str> {
        names.iter().map(|name| name.text.as_str()).collect()
    }

    #[test]
    fn rules_of_every_form() {
        assert_eq!(parse_rule("everyone"), Ok(Rule::Everyone));
        assert_eq!(parse_rule(" Nobody "), Ok(Rule::Nobody));
        assert_eq!(parse_rule("referenced"), Ok(Rule::Referenced(vec![])));
        match parse_rule("referenced by Orders, \"Order Details\"").unwrap() {
            Rule::Referenced(names) => assert_eq!(texts(&names), ["Orders", "Order Details"]),
            other => panic!("{other:?}"),
        }
        let own = path("Orders.EmployeeID = node.employee");
        assert_eq!((own.table.text.as_str(), texts(&own.start), own.attribute.text.as_str()), ("Orders", vec!["EmployeeID"], "employee"));
        let shared = path("opportunity.id -> opportunity_team(opportunity_id, active = 1, note = 'it''s').position_id = node.position");
        let join = &shared.joins[0];
        assert_eq!((texts(&join.join), texts(&join.out)), (vec!["opportunity_id"], vec!["position_id"]));
        assert_eq!(join.filters[0].1.value, Value::Integer(1));
        assert_eq!(join.filters[1].1.value, Value::text("it's"));
        let text = path("crew_member.id -> assignment(crew_id, status = \"on board\").imo = node.vessel");
        assert_eq!(text.joins[0].filters[0].1.value, Value::text("on board"));
        let several = path("manual_page.(manual_id, edition) -> manual_issue(manual_id, edition).class_id = node.class");
        assert_eq!(texts(&several.start), ["manual_id", "edition"]);
        assert_eq!(texts(&several.joins[0].join), ["manual_id", "edition"]);
        let everyone_table = path("everyone.id = node.x");
        assert_eq!(everyone_table.table.text, "everyone");
    }

    #[test]
    fn node_paths_and_windows() {
        let team = parse_node_path("node.position ->* position(parent_id).id").unwrap();
        assert!(team.joins[0].recursive);
        assert_eq!(team.from.text, "position");
        let window = parse_window("\"closed at\" within 400 days").unwrap();
        assert_eq!((window.column.text.as_str(), window.days), ("closed at", 400));
        assert_eq!(texts(&parse_columns("Orders.(a, b)").unwrap().columns), ["a", "b"]);
        assert_eq!(parse_columns("ShipVia").unwrap().table, None);
    }

    #[test]
    fn mistakes_have_their_column_and_what_to_write() {
        let cases: &[(&str, usize, &str)] = &[
            ("", 0, "expected a table, `everyone`, `nobody` or `referenced`, found the end"),
            ("Orders", 6, "expected `.` and a column, found the end"),
            ("Orders.EmployeeID", 17, "expected `->` or `= node.NAME`, found the end"),
            ("Orders.EmployeeID = employee", 20, "a rule ends with `= node.NAME`, not `employee`"),
            ("Orders.EmployeeID = node", 24, "expected `.` and the name of a node attribute, found the end"),
            ("Orders.EmployeeID = node.employee extra", 34, "expected the end, found `extra`"),
            ("a.b -> c = node.x", 9, "expected `(` and the column to join by, found `=`"),
            ("a.b -> c(d = 1).e = node.x", 7, "`c(..)` names no column to join by"),
            ("a.b -> c(d, e = 1, f).e = node.x", 20, "expected `=` and a literal, found `)`"),
            ("a.b -> c(d, e = NULL).f = node.x", 16, "nothing is equal to NULL"),
            ("a.b -> c(d, e = f).f = node.x", 16, "expected a number or a text in quotes, found `f`"),
            ("a.b ->* c(d).e = node.x", 4, "`->*` stands on the node side only"),
            ("node.x = a.b", 0, "a rule begins at the object's table, node.NAME stands on the right"),
            ("referenced from Orders", 11, "expected `by`, found `from`"),
            ("everyone else", 9, "expected the end, found `else`"),
            ("\"Orders.a = node.x", 0, "this \" is never closed"),
            ("Orders.a == node.x", 10, "expected node.NAME, found `=`"),
            ("Orders.a ; = node.x", 9, "`;` has no meaning here"),
            ("a.(b, ) = node.x", 6, "expected a column, found `)`"),
        ];
        for (text, at, message) in cases {
            let error = parse_rule(text).unwrap_err();
            assert_eq!((error.at, error.message.as_str()), (*at, *message), "{text}");
        }
        assert_eq!(parse_node_path("node.x").unwrap_err().message, "expected `->` and a table, found the end");
        assert_eq!(parse_window("closed_at within 0 days").unwrap_err().at, 17);
        assert_eq!(parse_window("closed_at in 5 days").unwrap_err().message, "expected `within`, found `in`");
        assert_eq!(parse_window("closed_at within 5 weeks").unwrap_err().message, "expected `days`, found `weeks`");
    }

    #[test]
    fn t8_random_strings_never_panic() {
        let pieces = [
            "T",
            ".",
            "col",
            " -> ",
            "->*",
            "(",
            ")",
            ",",
            "=",
            "node",
            "'",
            "\"",
            "referenced",
            " by ",
            "1",
            "-",
            "9e99",
            "within",
            "days",
            "ä",
            "\0",
            "🚢",
            "\\",
            " ",
        ];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..50_000 {
            let text: String = (0..random.usize(0..14)).map(|_| pieces[random.usize(0..pieces.len())]).collect();
            let errors = [parse_rule(&text).err(), parse_node_path(&text).err(), parse_window(&text).err(), parse_columns(&text).err()];
            for error in errors.into_iter().flatten() {
                assert!(error.at <= text.len() && text.is_char_boundary(error.at), "{text:?} {error:?}");
            }
        }
    }
}
