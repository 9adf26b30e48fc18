//! Cuts SQL text into SQLite's tokens, so that a rewrite never mistakes a comment, a quoted name or a string for SQL.
//!
//! It covers the whole text: the tokens laid end to end are the text again.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// White space or a comment; separates, means nothing.
    Blank,
    /// A bare word: a keyword or a name.
    Word,
    /// A name in `"..."`, `` `...` `` or `[...]`.
    Quoted,
    /// A string in `'...'`. SQLite takes it for a name where only a name can stand.
    Text,
    /// A number, blob literal, variable or sign: nothing that could name a column.
    Other,
}

/// A piece of SQL text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// What it is.
    pub(super) kind: Kind,
    /// Its text.
    pub(super) text: &'a str,
    /// Where it begins, in bytes.
    pub(super) start: usize,
}

impl Token<'_> {
    /// Returns where the token ends, in bytes.
    pub(super) fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Returns whether this is that keyword; a quoted word never is.
    pub(super) fn is_word(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// Returns whether this is that sign.
    pub(super) fn is_sign(&self, sign: &str) -> bool {
        self.kind == Kind::Other && self.text == sign
    }

    /// Returns the name that the token spells, without its quotes.
    pub(super) fn name(&self) -> String {
        let inner = || self.text.get(1..self.text.len().saturating_sub(1)).unwrap_or_default();
        match (self.kind, self.text.as_bytes().first()) {
            (Kind::Quoted, Some(b'[')) => inner().to_owned(),
            (Kind::Quoted, Some(b'`')) => inner().replace("``", "`"),
            (Kind::Quoted, _) => inner().replace("\"\"", "\""),
            (Kind::Text, _) => inner().replace("''", "'"),
            _ => self.text.to_owned(),
        }
    }
}

/// Cuts the text into tokens, blanks included.
pub(super) fn tokens(sql: &str) -> Vec<Token<'_>> {
    let bytes = sql.as_bytes();
    let mut found = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let (kind, end) = next(bytes, start);
        // Every end below lies after an ASCII byte or at the end of a run of name bytes, so on a character's edge.
        found.push(Token { kind, text: sql.get(start..end).unwrap_or_default(), start });
        start = end;
    }
    found
}

/// Cuts the text into tokens and leaves the blanks out.
pub(super) fn significant(sql: &str) -> Vec<Token<'_>> {
    let mut all = tokens(sql);
    all.retain(|token| token.kind != Kind::Blank);
    all
}

/// Returns kind and end of the token that begins at `start`.
fn next(bytes: &[u8], start: usize) -> (Kind, usize) {
    let at = |index: usize| bytes.get(index).copied();
    let run = |from: usize, test: fn(u8) -> bool| from + bytes.iter().skip(from).take_while(|byte| test(**byte)).count();
    let first = at(start).unwrap_or_default();
    match (first, at(start + 1)) {
        (b' ' | b'\t' | b'\n' | b'\r' | 0x0c, _) => (Kind::Blank, run(start, |byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c))),
        (b'-', Some(b'-')) => (Kind::Blank, run(start, |byte| byte != b'\n')),
        (b'/', Some(b'*')) => {
            let body = bytes.get(start + 2..).unwrap_or_default();
            // An open comment at the end of the text is one for SQLite too.
            let end = body.windows(2).position(|pair| pair == b"*/").map_or(bytes.len(), |found| start + 2 + found + 2);
            (Kind::Blank, end)
        }
        (b'"' | b'`', _) => (Kind::Quoted, quoted_end(bytes, start, first)),
        (b'[', _) => (Kind::Quoted, bytes.iter().skip(start).position(|byte| *byte == b']').map_or(bytes.len(), |found| start + found + 1)),
        (b'\'', _) => (Kind::Text, quoted_end(bytes, start, first)),
        (b'x' | b'X', Some(b'\'')) => (Kind::Other, quoted_end(bytes, start + 1, b'\'')),
        (b'0'..=b'9', _) | (b'.', Some(b'0'..=b'9')) => (Kind::Other, run(start, |byte| byte == b'.' || is_name_byte(byte))),
        (b'?' | b':' | b'@' | b'#', _) => (Kind::Other, run(start + 1, is_name_byte)),
        (byte, _) if is_name_byte(byte) => (Kind::Word, run(start, is_name_byte)),
        _ => (Kind::Other, start + 1),
    }
}

/// Returns the end of a text in quotes, in which a doubled quote stands for one.
fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut index = start + 1;
    while let Some(byte) = bytes.get(index) {
        index += 1;
        if *byte == quote {
            if bytes.get(index) != Some(&quote) {
                return index;
            }
            index += 1;
        }
    }
    bytes.len()
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_cover_the_text_and_know_every_quote() {
        let sql = "CREATE /* a ) */ TABLE \"a\"\"b\"(`c``d` x'00', [e f] 'it''s', -- , )\n größe 1.5e3 ?1, .5 /* open";
        let all = tokens(sql);
        assert_eq!(all.iter().map(|token| token.text).collect::<String>(), sql);
        let names: Vec<String> =
            all.iter().filter(|token| matches!(token.kind, Kind::Quoted | Kind::Text)).map(|token| token.name()).collect();
        assert_eq!(names, ["a\"b", "c`d", "e f", "it's"]);
        let words: Vec<&str> = all.iter().filter(|token| token.kind == Kind::Word).map(|token| token.text).collect();
        assert_eq!(words, ["CREATE", "TABLE", "größe"]);
        assert_eq!(all.iter().filter(|token| token.is_sign(")")).count(), 0, "both stand in comments");
    }

    #[test]
    fn any_text_is_covered() {
        for sql in ["", "'", "\"", "[", "`a", "x'", "/*", "--", "-", "é'ü", "a.b..c", "\u{0}"] {
            assert_eq!(tokens(sql).iter().map(|token| token.text).collect::<String>(), sql);
        }
    }
}
