//! The order of system calls in the real programs, read by strace: a file is flushed before it gets its name, its folder before a database says
//! that the file is there, and nothing is left unflushed at the end.
//!
//! A journal that commits everything with each flush (ext4) hides a folder that was not flushed from any power cut; other file systems do not.
//! So this harness looks at what was asked for, not at what one file system made of it (faults 3 and 4, PUT).

use crate::crm::{self, in_step, local, serve_again, server_sql};
use crate::harness::{Program, Site};
use crate::traced::{obstacle, traced};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// The calls that are judged.
const CALLS: &str = "write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,ftruncate";

/// Runs a program and returns its calls, each in one line, in their order.
fn calls(site: &Site, program: Program, arguments: &[&str]) -> Vec<String> {
    let (output, text) = traced(site, program, arguments, CALLS, &["-s", "512"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A call that another one interrupts counts from where it returned.
    let mut begun = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((process, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(process, first);
        } else if let Some((_, last)) = rest.split_once(" resumed>") {
            calls.push(format!("{}{last}", begun.remove(process).unwrap_or_default()));
        } else {
            calls.push(rest.to_owned());
        }
    }
    calls
}

/// The path that strace shows with a handle.
fn handle(call: &str) -> Option<&str> {
    let (_, rest) = call.split_once('<')?;
    rest.split_once('>').map(|(path, _)| path)
}

/// The two names of a rename; the program ran in `home`.
fn names(call: &str, home: &Path) -> Option<(String, String)> {
    let mut texts = call.split('"').skip(1).step_by(2).map(|name| home.join(name).to_string_lossy().into_owned());
    Some((texts.next()?, texts.next()?))
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// What was judged: how many files got their name, and every breach.
struct Judged {
    renamed: usize,
    breaches: Vec<String>,
}

/// Goes through the calls of one program. `databases` are those that say which files there are.
fn judge(site: &Site, calls: &[String], databases: &[&str]) -> Judged {
    let home = site.folder.path().canonicalize().unwrap();
    let (mut dirty, mut unflushed) = (BTreeSet::new(), BTreeSet::new());
    let mut judged = Judged { renamed: 0, breaches: Vec::new() };
    for call in calls.iter().filter(|call| !call.contains(" = -1 ")) {
        let name = call.split('(').next().unwrap_or_default();
        match (name, handle(call)) {
            ("write" | "writev" | "pwrite64" | "ftruncate", Some(path)) => {
                if databases.iter().any(|database| path.ends_with(&format!("{database}-wal"))) {
                    let late = unflushed.iter().map(|folder| format!("{path} is written before {folder} is flushed"));
                    judged.breaches.extend(late);
                }
                dirty.insert(path.to_owned());
            }
            ("fsync" | "fdatasync", Some(path)) => {
                dirty.remove(path);
                unflushed.remove(path);
            }
            ("rename" | "renameat" | "renameat2", _) => {
                let Some((from, to)) = names(call, &home) else { panic!("{call}") };
                judged.renamed += 1;
                if dirty.remove(&from) {
                    judged.breaches.push(format!("{to} gets its name and is not flushed"));
                }
                unflushed.insert(folder(&to).to_owned());
            }
            _ => {}
        }
    }
    judged.breaches.extend(unflushed.iter().map(|folder| format!("{folder} is not flushed at the end")));
    judged
}

#[test]
fn f3_f4_every_file_is_flushed_before_its_name_and_its_folder_before_anybody_is_told() {
    if let Some(why) = obstacle() {
        return println!("SKIPPED: strace cannot trace here: {why}");
    }
    let mut site = crm::running(&["ANNA", "BERT"]);
    site.stop();
    let change = |turn: i64| {
        server_sql(&site, &format!("UPDATE opportunity SET name = 'turn {turn}'; UPDATE product SET name = 'turn {turn}' WHERE id = 1"));
    };
    change(1);
    let stages = judge(&site, &calls(&site, Program::Dockmaster, &["run"]), &["cds.db", "ledger.db"]);
    change(2);
    let extract = judge(&site, &calls(&site, Program::Dockmaster, &["extract", "BERT", "--yes"]), &["cds.db", "ledger.db"]);
    let address = serve_again(&mut site);
    let sync = judge(&site, &calls(&site, Program::RemoteSync, &["sync", &local("ANNA")]), &["anna.db"]);
    let token = site.token("BERT");
    let init = judge(&site, &calls(&site, Program::RemoteSync, &["init", &address, "--token", &token, "--replace", &local("BERT")]), &[]);
    let whole = [("run", stages), ("extract", extract), ("sync", sync), ("init", init)];
    let breaches: Vec<String> =
        whole.iter().flat_map(|(what, judged)| judged.breaches.iter().map(move |breach| format!("{what}: {breach}"))).collect();
    assert!(breaches.is_empty(), "not flushed in time:\n{}", breaches.join("\n"));
    for (what, judged) in &whole {
        assert!(judged.renamed > 0, "{what} renames nothing");
    }
    in_step(&site, &["ANNA", "BERT"]);
    site.stop();
}
