//! What a command prints: data on stdout, progress on stderr, tables for people and JSON for programs.
//!
//! Colour is dropped when stdout is no terminal or NO_COLOR is set (anstream decides). Every JSON document has
//! `"version": 1`, which changes only when a field is taken away or changes its meaning.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value as Json;
use std::io::{IsTerminal as _, Write as _};

/// Version of the shape of all JSON output.
pub const JSON_VERSION: u32 = 1;

/// Whoever read our output has closed it, e.g. `head`.
#[derive(Debug, thiserror::Error)]
#[error("the reader of stdout went away")]
pub struct StdoutClosed;

/// Where a command prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    /// Returns an output; `json` chooses documents over sentences, `quiet` leaves the sentences out.
    pub fn new(json: bool, quiet: bool) -> Output {
        Output { json, quiet }
    }

    /// Returns whether the reader asked for JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Returns whether only results and errors are wanted.
    pub fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Prints text as it is, with a line end.
    pub fn line(self, text: impl AsRef<str>) -> anyhow::Result<()> {
        let mut stdout = anstream::stdout().lock();
        match writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
            other => Ok(other?),
        }
    }

    /// Prints a sentence for people: not with `--json`, not with `--quiet`.
    pub fn say(self, text: impl AsRef<str>) -> anyhow::Result<()> {
        if self.json || self.quiet { Ok(()) } else { self.line(text) }
    }

    /// Prints a JSON object with the version field first in meaning.
    pub fn json(self, mut document: Json) -> anyhow::Result<()> {
        if let Some(object) = document.as_object_mut() {
            object.insert("version".into(), JSON_VERSION.into());
        }
        self.line(serde_json::to_string_pretty(&document)?)
    }

    /// Returns a progress bar on stderr over `total` steps; invisible when stderr is no terminal, with `--json` and `--quiet`.
    pub fn progress(self, label: &str, total: u64) -> ProgressBar {
        let target = if self.json || self.quiet || !std::io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template("  {prefix:<9} {human_pos} of {human_len} {bar:24} {msg}") {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(label.to_owned());
        bar
    }
}

/// Returns a table without rules and borders: columns two spaces apart, headings in capitals.
///
/// `right` names the columns (by index) that hold numbers.
pub fn table(headings: &[&str], rows: Vec<Vec<String>>, right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Writes a number with thousands separators: `184,220`.
pub fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// Writes a number of things: `1 file`, `1,204 files`.
pub fn some(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{} {many}", count(number.cast_signed())) }
}

/// Writes a size as people read it: `4 kB`, `3.1 MB`.
pub fn bytes(size: u64) -> String {
    let mut value = size as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if value < 9.95 && unit != "B" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Writes a length of time as people read it: `now`, `12 min`, `2 h`, `61 d`.
pub fn ago(seconds: i64) -> String {
    match seconds {
        ..5 => "now".to_owned(),
        5..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_like_numbers() {
        assert_eq!([0, 999, 1_000, 184_220, -1_234_567].map(count), ["0", "999", "1,000", "184,220", "-1,234,567"]);
        assert_eq!([0, 999, 4_000, 96_123, 3_100_000, 41_000_000_000].map(bytes), ["0 B", "999 B", "4.0 kB", "96 kB", "3.1 MB", "41 GB"]);
        assert_eq!([0, 59, 720, 7_200, 61 * 86_400].map(ago), ["now", "59 s", "12 min", "2 h", "61 d"]);
    }

    #[test]
    fn tables_have_no_borders_and_align() {
        let rows = vec![vec!["SHOP-01".to_owned(), "3".to_owned()], vec!["X".to_owned(), "1,204".to_owned()]];
        assert_eq!(table(&["node", "rows"], rows, &[1]), "NODE      ROWS\nSHOP-01      3\nX        1,204");
    }
}
