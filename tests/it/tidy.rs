//! Reads the source as text and fails on what a compiler does not see: an import against the layer table, a file that
//! grew too long, a file that does not say why it exists, a call that only one folder may make, a forgotten marker.
//!
//! Each rule is a function from a [`Source`] to problems, so it is proved below on planted bad sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SOURCE_LINES_MAX: usize = 600;
const TEST_LINES_MAX: usize = 900;

/// One file: its path from the project's top, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    /// Returns the top folder below `src/`, e.g. `store` for `src/store/log.rs` and `src/store.rs`.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        inside.split('/').next().map(|first| first.strip_suffix(".rs").unwrap_or(first))
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| if place.ends_with('/') { self.path.starts_with(place) } else { self.path == *place })
    }

    /// Returns the text with comments, strings and what is compiled for tests only blanked out; lines keep their numbers.
    fn code(&self) -> String {
        without_test_items(without_comments_and_strings(&self.text))
    }
}

/// Blanks out comments, string and character literals. Newlines stay.
fn without_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let blank = |out: &mut Vec<u8>, part: &[u8]| out.extend(part.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
    while at < bytes.len() {
        let rest = &bytes[at..];
        let previous_is_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            rest.windows(2).position(|pair| pair == b"*/").map_or(rest.len(), |found| found + 2)
        } else if !previous_is_name && raw_string_hashes(rest).is_some() {
            let hashes = raw_string_hashes(rest).unwrap();
            let open = rest.iter().position(|byte| *byte == b'"').unwrap() + 1;
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            rest[open..].windows(close.len()).position(|window| window == close).map_or(rest.len(), |found| open + found + close.len())
        } else if rest[0] == b'"' {
            let mut end = 1;
            while end < rest.len() && rest[end] != b'"' {
                end += if rest[end] == b'\\' { 2 } else { 1 };
            }
            (end + 1).min(rest.len())
        } else if rest.starts_with(b"'\\") {
            rest[2..].iter().skip(1).position(|byte| *byte == b'\'').map_or(rest.len(), |found| found + 4)
        } else if rest[0] == b'\'' && text[at + 1..].chars().next().is_some_and(|c| text[at + 1 + c.len_utf8()..].starts_with('\'')) {
            2 + text[at + 1..].chars().next().map_or(0, char::len_utf8)
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        blank(&mut out, &rest[..end]);
        at += end;
    }
    String::from_utf8(out).expect("only whole literals were blanked out")
}

/// Blanks out every item under `#[cfg(test)]`: up to its closing brace, or to its semicolon.
fn without_test_items(code: String) -> String {
    let mut bytes = code.into_bytes();
    let mark = b"#[cfg(test)]";
    let mut from = 0;
    while let Some(found) = bytes[from..].windows(mark.len()).position(|window| window == mark) {
        let start = from + found;
        let (mut depth, mut end) = (0, bytes.len());
        for (offset, byte) in bytes[start..].iter().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b';' if depth == 0 => {}
                _ => continue,
            }
            if depth == 0 {
                end = start + offset + 1;
                break;
            }
        }
        bytes[start..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        from = end;
    }
    String::from_utf8(bytes).expect("only whole characters were blanked out")
}

/// Returns the number of `#` if a raw string (`r".."`, `br#".."#`) begins here.
fn raw_string_hashes(rest: &[u8]) -> Option<usize> {
    let after_r = rest.strip_prefix(b"br").or_else(|| rest.strip_prefix(b"r"))?;
    let hashes = after_r.iter().take_while(|byte| **byte == b'#').count();
    (after_r.get(hashes) == Some(&b'"')).then_some(hashes)
}

/// The layer table of `src/lib.rs`: folder -> folders that it may use.
fn layer_table(lib: &str) -> BTreeMap<String, Vec<String>> {
    let mut rows: Vec<(u32, Vec<String>, String)> = Vec::new();
    for line in lib.lines() {
        let cells: Vec<&str> = line.trim_start_matches("//!").trim().trim_matches('|').split('|').map(str::trim).collect();
        if let (Some(Ok(layer)), Some(folders), Some(may_use)) = (cells.first().map(|c| c.parse()), cells.get(1), cells.get(2)) {
            let folders = folders.split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect();
            rows.push((layer, folders, (*may_use).to_owned()));
        }
    }
    let below = |last: u32| rows.iter().filter(move |row| row.0 <= last).flat_map(|row| row.1.clone());
    let mut table = BTreeMap::new();
    for (_, folders, may_use) in &rows {
        let allowed: Vec<String> = match may_use.as_str() {
            "all" => below(u32::MAX).collect(),
            "-" => Vec::new(),
            words => words
                .split(',')
                .map(|word| word.trim().trim_matches('`'))
                .flat_map(|word| match word.strip_prefix("layers 0-") {
                    Some(last) => below(last.parse().expect("layers 0-N")).collect(),
                    None => vec![word.to_owned()],
                })
                .collect(),
        };
        for folder in folders {
            table.insert(folder.clone(), allowed.clone());
        }
    }
    table
}

/// Returns the folders that a piece of code names as `crate::folder` or `use crate::{folder, ..}`, with the line.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        if code[..start].ends_with('$') || code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = code[..start].matches('\n').count() + 1;
        let rest = &code[start + "crate::".len()..];
        let names: Vec<String> = match rest.strip_prefix('{') {
            None => vec![rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()],
            Some(group) => {
                let (mut depth, mut name, mut names) = (0, String::new(), Vec::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                        c if depth == 0 => name.push(c),
                        _ => {}
                    }
                }
                names.push(name);
                names.iter().map(|name| name.trim().split("::").next().unwrap_or("").to_owned()).filter(|name| !name.is_empty()).collect()
            }
        };
        found.extend(names.into_iter().map(|name| (line, name)));
    }
    found
}

fn check_layers(source: &Source, table: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    if matches!(module, "lib" | "bin") {
        return Vec::new();
    }
    let Some(allowed) = table.get(module) else {
        return vec![format!("{}: folder {module} is not in the layer table of src/lib.rs", source.path)];
    };
    imports(&source.code())
        .into_iter()
        .filter(|(_, name)| name != module && table.contains_key(name) && !allowed.contains(name))
        .map(|(line, name)| format!("{}:{line}: {module} may not use {name}", source.path))
        .collect()
}

fn check_size_and_header(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    let (lines, max) = (source.text.lines().count(), if source.path.starts_with("src/") { SOURCE_LINES_MAX } else { TEST_LINES_MAX });
    if lines > max {
        problems.push(format!("{}: {lines} lines, at most {max} are allowed; split it by subject", source.path));
    }
    match source.text.lines().next() {
        Some(first) if first.starts_with("//! ") && first.len() > 20 => {}
        _ => problems.push(format!("{}:1: no `//!` header that says why the file exists", source.path)),
    }
    if source.path.starts_with("src/") && source.path.matches('/').count() > 2 {
        problems.push(format!("{}: nothing lies deeper than src/x/y.rs", source.path));
    }
    problems
}

/// A call that only some places may make.
struct Ban {
    call: &'static str,
    allowed_in: &'static [&'static str],
    why: &'static str,
}

const PURE: &[&str] =
    &["src/dx/", "src/dx.rs", "src/rules/", "src/rules.rs", "src/session/", "src/session.rs", "src/model/", "src/model.rs"];
const CLOCK: &[&str] = &["src/base/", "src/cli/", "src/server/", "src/client/", "src/transport/", "src/transport.rs"];
const DISK: &[&str] = &["src/base/disk.rs"];
/// Besides, a group takes its own temporary files away.
const REMOVE: &[&str] = &["src/base/disk.rs", "src/base/group.rs"];
const PRINT: &[&str] = &["src/cli/"];
const SQL: &[&str] = &["src/store/", "src/cds/", "src/docking/", "src/cds.rs", "src/store.rs"];

const BANS: &[Ban] = &[
    Ban { call: ".unwrap()", allowed_in: &[], why: "return the error" },
    // `self.expect(` is a parser's own "the next token must be".
    Ban { call: ".expect(", allowed_in: &["src/rules/language.rs"], why: "return the error" },
    Ban { call: "panic!", allowed_in: &[], why: "return the error" },
    Ban { call: "todo!", allowed_in: &[], why: "finish it" },
    Ban { call: "unimplemented!", allowed_in: &[], why: "finish it" },
    Ban { call: "unsafe ", allowed_in: &[], why: "the project has no unsafe code" },
    Ban { call: "println!", allowed_in: PRINT, why: "the library never prints" },
    Ban { call: "eprintln!", allowed_in: PRINT, why: "the library never prints" },
    Ban { call: "fs::write(", allowed_in: DISK, why: "only base/disk.rs writes files" },
    Ban { call: "fs::rename(", allowed_in: DISK, why: "only base/disk.rs writes files" },
    Ban { call: "fs::remove_file(", allowed_in: REMOVE, why: "only base/disk.rs writes files" },
    Ban { call: "fs::copy(", allowed_in: DISK, why: "only base/disk.rs writes files" },
    Ban { call: "File::create", allowed_in: DISK, why: "only base/disk.rs writes files" },
    Ban { call: "fs::read_dir(", allowed_in: &["src/cli/config.rs"], why: "base/folder.rs lists folders" },
    Ban { call: "OpenOptions", allowed_in: DISK, why: "only base/disk.rs writes files" },
    Ban { call: "SystemTime::now", allowed_in: &["src/base/clock.rs"], why: "base/clock.rs reads the time of day" },
    Ban { call: "Timestamp::now", allowed_in: CLOCK, why: "the clock is read at the edges only" },
    Ban { call: "Zoned::now", allowed_in: CLOCK, why: "the clock is read at the edges only" },
    Ban { call: "Instant::now", allowed_in: CLOCK, why: "the clock is read at the edges only" },
    Ban { call: "env::var", allowed_in: &["src/cli/"], why: "configuration is read in cli only" },
    Ban { call: ".execute(", allowed_in: SQL, why: "SQL lives in store, cds and docking" },
    Ban { call: ".execute_batch(", allowed_in: SQL, why: "SQL lives in store, cds and docking" },
    Ban { call: ".prepare(", allowed_in: SQL, why: "SQL lives in store, cds and docking" },
    Ban { call: ".prepare_cached(", allowed_in: SQL, why: "SQL lives in store, cds and docking" },
    Ban { call: ".query_row(", allowed_in: SQL, why: "SQL lives in store, cds and docking" },
];

/// What the pure folders may not name at all.
const IMPURE: &[&str] = &["std::fs", "std::net", "std::time::Instant", "SystemTime", "rusqlite", "tokio::", "base::disk"];

fn check_calls(source: &Source) -> Vec<String> {
    let code = source.code();
    let mut problems = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut report = |call: &str, why: &str| problems.push(format!("{}:{}: `{call}`: {why}", source.path, number + 1));
        for ban in BANS {
            let bare = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') || ban.call.starts_with('.');
            if !source.is_in(ban.allowed_in) && line.match_indices(ban.call).any(|(at, _)| bare(at)) {
                report(ban.call, ban.why);
            }
        }
        if source.is_in(PURE) {
            IMPURE
                .iter()
                .filter(|name| line.contains(**name))
                .for_each(|name| report(name, "this folder is pure: no disk, SQL, socket or clock"));
        }
    }
    problems
}

/// Words that stand for unfinished work or for one machine: (word, places where it is the subject).
fn banned_words() -> Vec<(String, &'static [&'static str])> {
    const STARTER: &[&str] = &[
        "src/rules/starter.rs",
        "docs/definition.md",
        "tests/it/definition.rs",
        "src/cli/definition_commands.rs",
        "tests/it/cli.rs",
        "README.md",
    ];
    vec![
        (["TO", "DO"].concat(), STARTER),
        (["FIX", "ME"].concat(), &[]),
        (["XX", "X"].concat(), &[]),
        (["HA", "CK"].concat(), &[]),
        (["not implemented", " yet"].concat(), &[]),
        (["Being", " written"].concat(), &[]),
        (["lorem", " ipsum"].concat(), &[]),
        (["/wo", "rk/"].concat(), &[]),
        (["/ro", "ot/"].concat(), &[]),
        (["/ho", "me/"].concat(), &[]),
    ]
}

fn check_words(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    for (word, allowed_in) in banned_words() {
        if source.is_in(allowed_in) {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            let is_word = |at: usize| {
                let joins = |c: char| c.is_alphanumeric() || c == '_';
                word.starts_with('/') || (!line[..at].ends_with(joins) && !line[at + word.len()..].starts_with(joins))
            };
            if line.match_indices(&word).any(|(at, _)| is_word(at)) {
                problems.push(format!("{}:{}: `{word}` must not stay in the tree", source.path, number + 1));
            }
        }
    }
    problems
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of the tree that is ours: what is generated or ignored by git is left out.
fn tree() -> Vec<Source> {
    let skip = [".git", "target", "playground"];
    let kinds = ["rs", "md", "toml", "sh", "sql", "example", "run", "justfile", "gitignore"];
    let walk = walkdir::WalkDir::new(top()).sort_by_file_name().into_iter().filter_entry(move |entry| {
        let name = entry.file_name().to_string_lossy();
        let run_time_state = entry.file_type().is_dir() && entry.path().parent() == Some(&top().join("docking"));
        !run_time_state && !skip.contains(&name.as_ref())
    });
    let mut sources = Vec::new();
    for entry in walk {
        let entry = entry.expect("walk the tree");
        let ending = entry.path().extension().map_or(entry.file_name(), |ending| ending).to_string_lossy().into_owned();
        if entry.file_type().is_file() && kinds.contains(&ending.as_str()) {
            let path = relative(entry.path());
            sources.push(Source { text: std::fs::read_to_string(entry.path()).unwrap_or_else(|error| panic!("{path}: {error}")), path });
        }
    }
    sources
}

fn relative(path: &Path) -> String {
    path.strip_prefix(top())
        .expect("below the top")
        .components()
        .map(|part| part.as_os_str().to_string_lossy())
        .collect::<Vec<_>>()
        .join("/")
}

/// Files below `src/` that are compiled for tests only: `#[cfg(test)] mod x;` in the root of their layer.
fn test_files(sources: &[Source]) -> Vec<String> {
    let mut files = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/")) {
        for part in source.text.split("#[cfg(test)]\nmod ").skip(1) {
            if let Some((name, _)) = part.split_once(';').filter(|(name, _)| !name.contains(char::is_whitespace)) {
                files.push(format!("{}/{name}.rs", source.path.trim_end_matches(".rs")));
            }
        }
    }
    files
}

#[test]
fn the_tree_is_tidy() {
    let table = layer_table(&std::fs::read_to_string(top().join("src/lib.rs")).unwrap());
    let sources = tree();
    assert!(sources.iter().any(|source| source.path == "src/base/ids.rs"), "the walk found the sources");
    let mut problems: Vec<String> = sources.iter().flat_map(check_words).collect();
    let for_tests = test_files(&sources);
    for source in sources.iter().filter(|source| source.path.ends_with(".rs")) {
        problems.extend(check_size_and_header(source));
        if source.path.starts_with("src/") && !for_tests.contains(&source.path) {
            problems.extend(check_layers(source, &table));
            problems.extend(check_calls(source));
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn the_architecture_page_shows_the_same_layers() {
    let read = |path: &str| layer_table(&std::fs::read_to_string(top().join(path)).unwrap());
    assert_eq!(read("docs/ARCHITECTURE.md"), read("src/lib.rs"));
}

#[test]
fn the_requirements_page_names_tests_that_exist() {
    let page = std::fs::read_to_string(top().join("docs/requirements-status.md")).unwrap();
    let sources = tree();
    let exists = |name: &str| sources.iter().any(|source| source.path.ends_with(".rs") && source.text.contains(&format!("fn {name}(")));
    let test_like = |word: &&str| word.len() > 20 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(test_like).collect();
    assert!(named.len() > 50, "the page names tests");
    let missing: Vec<&str> = named.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

#[test]
fn the_mains_are_short() {
    for name in ["dockmaster", "remote_sync"] {
        let text = std::fs::read_to_string(top().join(format!("src/bin/{name}.rs"))).unwrap();
        assert!(text.lines().count() < 20, "src/bin/{name}.rs calls cli and nothing else");
    }
}

const LAYERS: &str = "//! | layer | folder | may use | what |\n//! |---|---|---|---|\n//! | 0 | `base` | - | x |\n//! | 1 | `model` | base | x |\n\
    //! | 2 | `dx`, `rules` | base, model | x |\n//! | 3 | `store`, `docking` | layers 0-2 | x |\n//! | 3 | `transport` | layers 0-2, docking | x |\n\
    //! | 4 | `server`, `client` | layers 0-3 | x |\n//! | 5 | `cli` | all | x |\n";

fn layer_problems(path: &str, text: &str) -> Vec<String> {
    check_layers(&Source::new(path, text), &layer_table(LAYERS))
}

#[test]
fn a_planted_import_against_the_table_is_found() {
    for (path, text) in [
        ("src/base/ids.rs", "use crate::model::value::Value;"),
        ("src/rules/route.rs", "use crate::{base::ids::TxnId, store::log::Log};"),
        ("src/rules/route.rs", "fn f() { let a = crate::store::log::read(); }"),
        ("src/dx/reader.rs", "use crate::rules::graph::Graph;"),
        ("src/server/router.rs", "use crate::client::apply::step;"),
        ("src/client/apply.rs", "use crate::server::nodes;"),
        ("src/store/log.rs", "use crate::docking::root::DockingRoot;"),
        ("src/store.rs", "pub use crate::server::nodes;"),
        ("src/attic/x.rs", "use std::fmt;"),
    ] {
        assert_eq!(layer_problems(path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/rules/route.rs", "use crate::{base::ids::TxnId, model::{event::RowEvent, value::Value}};"),
        ("src/rules/route.rs", "// use crate::store::log;\nlet a = \"crate::store::x\";"),
        ("src/rules/route.rs", "use std::fmt;\n#[cfg(test)]\nmod tests {\n use crate::store::log; }"),
        ("src/transport/tcp.rs", "use crate::docking::root::DockingRoot;"),
        ("src/server/router.rs", "use crate::{docking::ledger::Ledger, server::status};"),
        ("src/cli/exit.rs", "use crate::{client::apply, server::nodes};"),
    ] {
        assert_eq!(layer_problems(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn a_planted_long_file_or_missing_header_is_found() {
    let header = "//! Why this file exists and what holds.\n";
    let check = |path: &str, text: &str| check_size_and_header(&Source::new(path, text)).len();
    assert_eq!(check("src/a/b.rs", &format!("{header}{}", "x\n".repeat(599))), 0);
    assert_eq!(check("src/a/b.rs", &format!("{header}{}", "x\n".repeat(600))), 1);
    assert_eq!(check("tests/it/b.rs", &format!("{header}{}", "x\n".repeat(899))), 0);
    assert_eq!(check("tests/it/b.rs", &format!("{header}{}", "x\n".repeat(900))), 1);
    assert_eq!(check("src/a/b.rs", "use std::fmt;\n//! Too late, this is not the first line.\n"), 1);
    assert_eq!(check("src/a/b/c.rs", header), 1);
}

#[test]
fn a_planted_banned_call_is_found() {
    let check = |path: &str, text: &str| check_calls(&Source::new(path, text)).len();
    for (path, text) in [
        ("src/server/router.rs", "let a = b.unwrap();"),
        ("src/server/router.rs", "let a = b\n    .expect(\"x\");"),
        ("src/cli/exit.rs", "panic!(\"x\")"),
        ("src/server/router.rs", "println!(\"x\");"),
        ("src/server/router.rs", "std::fs::rename(a, b)?;"),
        ("src/server/router.rs", "let f = std::fs::File::create(a)?;"),
        ("src/store/log.rs", "let now = SystemTime::now();"),
        ("src/docking/queue.rs", "let now = std::time::Instant::now();"),
        ("src/server/router.rs", "connection.query_row(sql, [], read)?;"),
        ("src/client/folder.rs", "let a = std::env::var(\"X\");"),
        ("src/rules/route.rs", "use std::fs;"),
        ("src/session/client.rs", "use tokio::net::TcpStream;"),
        ("src/server/router.rs", "let a = r#\"a \" quote\"#; x.unwrap();"),
        ("src/server/router.rs", "let c = '\"'; x.unwrap();"),
        ("src/server/router.rs", "let c = '\\''; x.unwrap();"),
        ("src/server/router.rs", "fn f<'a>(x: &'a str) { x.unwrap(); }"),
        ("src/server/router.rs", "#[cfg(test)]\nfn a() { x.unwrap(); }\nfn b() { x.unwrap(); }"),
        ("src/server/router.rs", "#[cfg(test)]\nmod crash;\nfn b() { x.unwrap(); }"),
    ] {
        assert_eq!(check(path, text), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/server/router.rs", "// x.unwrap() would be wrong\nlet a = \"panic!\"; let b = c.unwrap_or_default();"),
        ("src/server/router.rs", "/* a.unwrap() */ let b = 1;"),
        ("src/server/router.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn f() { x.unwrap(); }\n}"),
        ("src/base/disk.rs", "std::fs::rename(a, b)?;"),
        ("src/cli/output.rs", "let a = std::env::var(\"NO_COLOR\");"),
        ("src/store/log.rs", "connection.query_row(sql, [], read)?;"),
    ] {
        assert_eq!(check(path, text), 0, "{path}: {text}");
    }
}

#[test]
fn a_planted_marker_is_found() {
    let to_do = ["TO", "DO"].concat();
    let check = |path: &str, text: &str| check_words(&Source::new(path, text)).len();
    assert_eq!(check("src/server/router.rs", &format!("// {to_do}: later")), 1);
    assert_eq!(check("docs/operations.md", &["see /wo", "rk/notes"].concat()), 1);
    assert_eq!(check("docs/operations.md", &format!("M{to_do}S")), 0);
    assert_eq!(check("src/rules/starter.rs", &format!("\"# {to_do}: whose rows are these?\"")), 0);
}
