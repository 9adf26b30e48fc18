//! Takes the terms and the condition out of a stored `CREATE INDEX` text: SQLite's pragmas do not tell them.
//!
//! SQLite has accepted the text, so it is well formed; this only has to know where comments, quotes and parentheses end.

/// What a `CREATE INDEX` text says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexText {
    /// The indexed terms as written, without `ASC` and `DESC`.
    pub terms: Vec<String>,
    /// The text after `WHERE`.
    pub condition: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blank,
    Word,
    Quoted,
    Mark(u8),
}

impl IndexText {
    /// Reads a `CREATE INDEX` text.
    pub fn parse(sql: &str) -> IndexText {
        let tokens = tokens(sql);
        let mut depth = 0usize;
        let mut parsed = IndexText::default();
        let mut term: Option<usize> = None;
        let mut list_done = false;
        let mut on_seen = false;
        for (position, (kind, start, end)) in tokens.iter().enumerate() {
            match kind {
                Kind::Word if depth == 0 && !on_seen => on_seen = sql[*start..*end].eq_ignore_ascii_case("on"),
                Kind::Word if depth == 0 && list_done && sql[*start..*end].eq_ignore_ascii_case("where") => {
                    parsed.condition = Some(text_of(sql, tokens.get(position + 1..).unwrap_or_default()));
                    break;
                }
                Kind::Mark(b'(') => {
                    depth += 1;
                    if depth == 1 && on_seen && !list_done {
                        term = Some(position + 1);
                    }
                }
                Kind::Mark(b')') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0
                        && let Some(first) = term.take()
                    {
                        parsed.terms.push(term_of(sql, tokens.get(first..position).unwrap_or_default()));
                        list_done = true;
                    }
                }
                Kind::Mark(b',') if depth == 1 => {
                    if let Some(first) = term.replace(position + 1) {
                        parsed.terms.push(term_of(sql, tokens.get(first..position).unwrap_or_default()));
                    }
                }
                _ => {}
            }
        }
        parsed
    }
}

/// Joins tokens as written, with each comment or run of blanks made one blank: a `--` must not swallow what we put behind.
fn text_of(sql: &str, tokens: &[(Kind, usize, usize)]) -> String {
    let mut text = String::new();
    for (kind, start, end) in tokens {
        match kind {
            Kind::Blank => text.push(' '),
            Kind::Mark(b';') => {}
            _ => text.push_str(&sql[*start..*end]),
        }
    }
    text.trim().to_owned()
}

fn term_of(sql: &str, tokens: &[(Kind, usize, usize)]) -> String {
    let used = tokens.iter().rposition(|(kind, ..)| *kind != Kind::Blank).map_or(0, |last| last + 1);
    let mut tokens = tokens.get(..used).unwrap_or_default();
    if let Some((Kind::Word, start, end)) = tokens.last()
        && tokens.len() > 1
        && ["asc", "desc"].iter().any(|word| sql[*start..*end].eq_ignore_ascii_case(word))
    {
        tokens = tokens.get(..tokens.len() - 1).unwrap_or_default();
    }
    text_of(sql, tokens)
}

fn tokens(sql: &str) -> Vec<(Kind, usize, usize)> {
    let bytes = sql.as_bytes();
    let at = |position: usize| bytes.get(position).copied().unwrap_or(0);
    let mut found = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let mut end = start + 1;
        let kind = match at(start) {
            byte if byte.is_ascii_whitespace() => {
                while at(end).is_ascii_whitespace() {
                    end += 1;
                }
                Kind::Blank
            }
            b'-' if at(end) == b'-' => {
                while end < bytes.len() && at(end) != b'\n' {
                    end += 1;
                }
                Kind::Blank
            }
            b'/' if at(end) == b'*' => {
                end = sql.get(start + 2..).and_then(|rest| rest.find("*/")).map_or(bytes.len(), |length| start + 4 + length);
                Kind::Blank
            }
            open @ (b'\'' | b'"' | b'`' | b'[') => {
                let close = if open == b'[' { b']' } else { open };
                loop {
                    if end >= bytes.len() {
                        break;
                    }
                    if at(end) == close {
                        end += 1;
                        // A doubled quote stands for itself; a bracket cannot be doubled.
                        if close == b']' || at(end) != close {
                            break;
                        }
                    }
                    end += 1;
                }
                Kind::Quoted
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 => {
                while at(end).is_ascii_alphanumeric() || matches!(at(end), b'_' | b'$') || at(end) >= 0x80 {
                    end += 1;
                }
                Kind::Word
            }
            byte => Kind::Mark(byte),
        };
        found.push((kind, start, end.min(bytes.len())));
        start = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r2_terms_and_conditions_are_found_whatever_the_writing() {
        for (sql, terms, condition) in [
            ("CREATE INDEX i ON t(a)", vec!["a"], None),
            ("CREATE UNIQUE INDEX [on (] ON \"t(\"(a desc,lower( b ) ASC) where x in (1,2)", vec!["a", "lower( b )"], Some("x in (1,2)")),
            (
                "create unique index i on t (coalesce(a,'it''s, )'), `b``(`) -- where\n WHERE a = 'desc' -- end",
                vec!["coalesce(a,'it''s, )')", "`b``(`"],
                Some("a = 'desc'"),
            ),
            ("CREATE INDEX i ON t(é, \"desc\" , a/b-c)", vec!["é", "\"desc\"", "a/b-c"], None),
        ] {
            let parsed = IndexText::parse(sql);
            assert_eq!(parsed.terms, terms, "{sql}");
            assert_eq!(parsed.condition.as_deref(), condition, "{sql}");
        }
    }
}
