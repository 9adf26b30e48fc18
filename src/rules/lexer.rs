//! Tokens of the rule language. Pure text; every token carries its byte offset.

use crate::rules::language::LanguageError;

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Name { text: String, quoted: bool },
    Text(String),
    Number(String),
    Dot,
    Comma,
    Open,
    Close,
    Arrow,
    ArrowStar,
    Equals,
}

/// Cuts a rule string into tokens, each with its byte offset.
pub(crate) fn tokenize(text: &str) -> Result<Vec<(usize, Token)>, LanguageError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let (token, length) = match first {
            '.' => (Token::Dot, 1),
            ',' => (Token::Comma, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '=' => (Token::Equals, 1),
            '-' if rest.starts_with("->*") => (Token::ArrowStar, 3),
            '-' if rest.starts_with("->") => (Token::Arrow, 2),
            '"' | '\'' => {
                let (inner, length) = quoted(rest, first).ok_or_else(|| LanguageError {
                    at,
                    message: format!("this {first} is never closed"),
                    hint: None,
                })?;
                if first == '"' && inner.is_empty() {
                    return Err(LanguageError { at, message: "an empty name".into(), hint: Some("an empty text is ''".into()) });
                }
                (if first == '"' { Token::Name { text: inner, quoted: true } } else { Token::Text(inner) }, length)
            }
            '0'..='9' | '-' | '+' => {
                let length = rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'))).unwrap_or(rest.len());
                (Token::Number(rest.get(..length).unwrap_or("").to_owned()), length)
            }
            c if c.is_alphabetic() || c == '_' => {
                let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
                (Token::Name { text: rest.get(..length).unwrap_or("").to_owned(), quoted: false }, length)
            }
            other => {
                return Err(LanguageError {
                    at,
                    message: format!("`{}` has no meaning here", other.escape_debug()),
                    hint: Some("a name with other characters stands in double quotes: \"Order Details\"".into()),
                });
            }
        };
        tokens.push((at, token));
        rest = rest.get(length..).unwrap_or("");
    }
}

/// Reads a quoted string in which the quote is doubled to stand for itself; returns it and the bytes it takes.
fn quoted(rest: &str, quote: char) -> Option<(String, usize)> {
    let mut inner = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character != quote {
            inner.push(character);
        } else if characters.next_if(|(_, next)| *next == quote).is_some() {
            inner.push(quote);
        } else {
            return Some((inner, at + 1));
        }
    }
    None
}
