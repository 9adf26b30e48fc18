//! Problems of a definition: where they are, what is wrong, what to write instead.
//!
//! Every string of the definition carries its place, so a mistake inside a rule is reported at its own column. All problems are
//! collected; nothing stops at the first.

use std::fmt;

/// One file of the definition. The first one given to `check` is the main file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Name as messages print it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// One problem or warning, at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File name.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

/// `file:line:column message   hint`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{} {}", self.file, self.line, self.column, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "   {hint}"),
            None => Ok(()),
        }
    }
}

/// A place in the definition: file number and byte offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct At {
    /// Index of the file.
    pub file: usize,
    /// Byte offset in its text.
    pub offset: usize,
}

/// A string of the definition and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text {
    /// The string after unescaping.
    pub value: String,
    /// Place of the whole, the opening quote included.
    pub at: At,
    /// File offset of each byte of `value`, and of its end.
    inner: Vec<usize>,
}

impl Text {
    /// Returns a text whose bytes stand one by one from `start` on, e.g. a bare key.
    pub fn plain(value: &str, at: At) -> Text {
        Text { value: value.to_owned(), at, inner: Vec::new() }
    }

    /// Returns a TOML string whose source, quotes included, is `raw` at `at`.
    pub fn quoted(value: &str, raw: &str, at: At) -> Text {
        Text { value: value.to_owned(), at, inner: map_offsets(value, raw).into_iter().map(|inner| at.offset + inner).collect() }
    }

    /// Returns the place of the byte at `offset` within the value.
    pub fn inside(&self, offset: usize) -> At {
        let last = self.inner.last().copied();
        At { file: self.at.file, offset: self.inner.get(offset).copied().or(last).unwrap_or(self.at.offset + offset.min(self.value.len())) }
    }
}

/// Returns for each byte of `value`, and for its end, the offset within `raw`, the TOML spelling with its quotes.
fn map_offsets(value: &str, raw: &str) -> Vec<usize> {
    let quote = ["'''", "\"\"\"", "'", "\""].into_iter().find(|quote| raw.starts_with(quote)).unwrap_or("");
    let escapes = quote.starts_with('"');
    let mut at = quote.len();
    if quote.len() == 3 {
        // A newline right after the opening quotes is not part of the string.
        at += raw.get(at..).map_or(0, |rest| if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) });
    }
    let mut offsets = Vec::with_capacity(value.len() + 1);
    for character in value.chars() {
        let rest = raw.get(at..).unwrap_or("");
        let step = match rest.strip_prefix('\\').filter(|_| escapes).and_then(|rest| rest.chars().next()) {
            Some('x') => 4,
            Some('u') => 6,
            Some('U') => 10,
            Some(_) => 2,
            None => character.len_utf8(),
        };
        offsets.extend(std::iter::repeat_n(at, character.len_utf8()));
        at = (at + step).min(raw.len());
    }
    offsets.push(at);
    offsets
}

/// Collects problems and warnings and turns places into lines and columns.
#[derive(Debug)]
pub struct Report<'a> {
    files: &'a [SourceFile],
    problems: Vec<(At, Problem)>,
    warnings: Vec<(At, Problem)>,
}

impl<'a> Report<'a> {
    /// Returns an empty report over these files.
    pub fn new(files: &'a [SourceFile]) -> Report<'a> {
        Report { files, problems: Vec::new(), warnings: Vec::new() }
    }

    /// Adds a problem.
    pub fn problem(&mut self, at: At, message: impl Into<String>, hint: Option<String>) {
        let problem = self.place(at, message.into(), hint);
        if !self.problems.iter().any(|(_, known)| *known == problem) {
            self.problems.push((at, problem));
        }
    }

    /// Adds a warning.
    pub fn warning(&mut self, at: At, message: impl Into<String>, hint: Option<String>) {
        let warning = self.place(at, message.into(), hint);
        if !self.warnings.iter().any(|(_, known)| *known == warning) {
            self.warnings.push((at, warning));
        }
    }

    /// Returns whether no problem was found.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Returns problems and warnings, each in the order of the files.
    pub fn finish(mut self) -> (Vec<Problem>, Vec<Problem>) {
        self.problems.sort_by_key(|(at, _)| *at);
        self.warnings.sort_by_key(|(at, _)| *at);
        let plain = |list: Vec<(At, Problem)>| list.into_iter().map(|(_, problem)| problem).collect();
        (plain(self.problems), plain(self.warnings))
    }

    fn place(&self, at: At, message: String, hint: Option<String>) -> Problem {
        let (name, text) = self.files.get(at.file).map_or(("dockmaster.toml", ""), |file| (file.name.as_str(), file.text.as_str()));
        let before = text.get(..at.offset.min(text.len())).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
        Problem { file: name.to_owned(), line: line as u32, column: column as u32, message, hint }
    }
}

/// Returns the known name that looks most like `wrong`, if one is near enough to be a slip.
pub fn nearest<'n>(wrong: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let lower = wrong.to_lowercase();
    let allowed = (wrong.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (distance(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= allowed || (wrong.len() >= 3 && name.to_lowercase().starts_with(&lower)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Returns the hint `did you mean X?` when a known name is near.
pub fn did_you_mean<'n>(wrong: &str, known: impl IntoIterator<Item = &'n str>) -> Option<String> {
    nearest(wrong, known).map(|name| format!("did you mean {name}?"))
}

/// Edit distance: insert, delete, replace, or swap two neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        for (j, cell) in row.iter_mut().enumerate() {
            if i == 0 || j == 0 {
                *cell = i + j;
            }
        }
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_inside_strings_survive_escapes() {
        let raw = r#""a\"b\u00e4c""#;
        let text = Text::quoted("a\"bäc", raw, At { file: 0, offset: 10 });
        assert_eq!(text.inside(0).offset, 11);
        assert_eq!(text.inside(1).offset, 12);
        assert_eq!(text.inside(2).offset, 14);
        assert_eq!(text.inside(3).offset, 15);
        assert_eq!(text.inside(5).offset, 21);
        assert_eq!(text.inside(99).offset, 22);
        let long = Text::quoted("ab", "'''\nab'''", At { file: 0, offset: 0 });
        assert_eq!(long.inside(1).offset, 5);
    }

    #[test]
    fn columns_count_characters() {
        let files = [SourceFile { name: "a.toml".into(), text: "x = 1\nä = 'ü' # ?".into() }];
        let mut report = Report::new(&files);
        report.problem(At { file: 0, offset: files[0].text.find('#').unwrap() }, "here", None);
        assert_eq!(report.finish().0[0].to_string(), "a.toml:2:9 here");
    }

    #[test]
    fn did_you_mean_names_slips_only() {
        assert_eq!(nearest("EmployeId", ["EmployeeID", "OrderID"]), Some("EmployeeID"));
        assert_eq!(nearest("teams", ["employee", "team"]), Some("team"));
        assert_eq!(nearest("cnotact", ["contact", "account"]), Some("contact"));
        assert_eq!(nearest("zebra", ["contact", "account"]), None);
        assert_eq!(nearest("", ["contact"]), None);
    }
}
