//! The two programs from outside: what they print, where they print it, and the code that they end with.

use crate::harness::Site;
use std::path::Path;
use std::process::{Command, Output};

const DOCKMASTER: &str = env!("CARGO_BIN_EXE_dockmaster");
const REMOTE_SYNC: &str = env!("CARGO_BIN_EXE_remote-sync");

/// Runs a program in `folder`, without colours and without a configuration from outside.
fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_remove("DOCKMASTER_CONFIG").env_remove("RUST_LOG").env("NO_COLOR", "1");
    command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Every command of a program, found by asking it for help, level by level.
fn commands_of(program: &str) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let mut found: Vec<Vec<String>> = vec![vec![]];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = run(program, folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{program} {arguments:?}: {}", stderr(&output));
        let text = stdout(&output);
        let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        for line in listed.filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
            let name = line.split_whitespace().next().unwrap_or_default();
            if name != "help" {
                found.push([path.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    found
}

#[test]
fn every_command_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    for program in [DOCKMASTER, REMOTE_SYNC] {
        let commands = commands_of(program);
        assert!(commands.len() > 1, "{program}: {commands:?}");
        for path in commands {
            let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
            arguments.push("-h");
            let text = stdout(&run(program, folder.path(), &arguments));
            let about = text.lines().next().unwrap_or_default();
            assert!(about.len() > 16 && !about.starts_with("Usage"), "{program} {path:?} does not say what it does: {about:?}");
            assert!(text.lines().all(|line| line.len() <= 140), "{program} {path:?}: {text}");
        }
    }
}

// --- the README's tour -----------------------------------------------------------------------------------------------------

/// One fenced block of the tour: text that is run as it is, or a session whose outputs are compared.
enum Block {
    Run(String),
    Show(Vec<(String, String)>),
}

/// The blocks of a page that stand under `<!-- tour: run -->` and `<!-- tour: show -->`.
fn tour_of(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for part in page.split("<!-- tour: ").skip(1) {
        let (kind, rest) = part.split_once(" -->").expect("a closed mark");
        let code = rest.split("```").nth(1).expect("a block after the mark");
        let body = code.split_once('\n').expect("lines in the block").1;
        blocks.push(match kind {
            "run" => Block::Run(body.to_owned()),
            "show" => {
                let commands = format!("\n{body}");
                let steps = commands.split("\n$ ").skip(1).map(|step| step.split_once('\n').unwrap_or((step, "")));
                Block::Show(steps.map(|(command, output)| (command.to_owned(), output.trim_end().to_owned())).collect())
            }
            other => panic!("unknown mark {other}"),
        });
    }
    blocks
}

/// What differs between two runs: numbers that are measured, the port, the width of columns made of them.
fn blurred(text: &str, port: u16) -> String {
    let text = text.replace(&port.to_string(), "40400");
    let words = text.lines().map(|line| line.split_whitespace().map(blurred_word).collect::<Vec<_>>().join(" "));
    words.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

fn blurred_word(word: &str) -> String {
    // Numbers with a point are times and sizes; `now` and the room on the disk depend on the moment and the machine.
    if word.contains('.') && word.trim_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ',').is_empty() {
        "0.0".to_owned()
    } else {
        word.to_owned()
    }
}

/// Takes out what is about this machine: the disk of `status`, sizes in bytes.
fn comparable(text: &str, port: u16) -> String {
    let mut out = String::new();
    for line in blurred(text, port).lines() {
        let line = line.split(" disk ").next().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        let sized: Vec<String> = words
            .iter()
            .enumerate()
            .map(|(at, word)| {
                let unit = words
                    .get(at + 1)
                    .is_some_and(|next| ["B", "kB", "MB", "B:", "kB:", "B,", "kB,", "kB.", "B;", "kB;", "s", "s.", "s,"].contains(next));
                if unit && word.starts_with(|c: char| c.is_ascii_digit()) { "N".to_owned() } else { (*word).to_owned() }
            })
            .map(|word| if ["kB", "MB"].contains(&word.as_str()) { "B".to_owned() } else { word })
            .collect();
        out.push_str(&sized.join(" "));
        out.push('\n');
    }
    out.trim_end().to_owned()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn every_line_of_the_readme_tour_works_and_prints_what_it_says() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let blocks = tour_of(&page);
    assert!(blocks.len() >= 6, "the tour is there");
    let port = free_port();
    // One shell for all blocks, as a reader has it; each output goes to a file of its own.
    let mut script = "set -u\nexec 2>&1\n".to_owned();
    let mut expected = Vec::new();
    for block in &blocks {
        match block {
            Block::Run(text) => script.push_str(&format!("{text}\n")),
            Block::Show(steps) => {
                for (command, output) in steps {
                    if command.starts_with("remote-sync sync") {
                        // A reader types slower than the service routes.
                        script.push_str("sleep 0.3\n");
                    }
                    script.push_str(&format!("{{ {command}\n}} > step-{}.txt 2>&1 < /dev/null\n", expected.len()));
                    expected.push((command.clone(), output.clone()));
                }
            }
        }
        if script.contains("dockmaster serve &") && !script.contains("wait_for_port") {
            script.push_str(&format!(
                "wait_for_port() {{ for i in $(seq 200); do (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && return; sleep 0.05; done; exit 9; }}\nwait_for_port\n"
            ));
        }
    }
    let script = script.replace("40400", &port.to_string());
    let folder = tempfile::tempdir().unwrap();
    let programs = Path::new(DOCKMASTER).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(&script).current_dir(folder.path()).env("PATH", path).env("NO_COLOR", "1");
    let done = shell.env_remove("DOCKMASTER_CONFIG").env_remove("RUST_LOG").output().unwrap();
    let mut wrong = Vec::new();
    for (number, (command, output)) in expected.iter().enumerate() {
        let printed = std::fs::read_to_string(folder.path().join(format!("step-{number}.txt"))).unwrap_or_default();
        if comparable(&printed, port) != comparable(output, port) {
            wrong.push(format!("$ {command}\n--- README\n{output}\n--- printed\n{printed}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n--- shell ({})\n{}", wrong.join("\n\n"), done.status, stdout(&done));
    assert!(done.status.success(), "{}: {}", done.status, stdout(&done));
}

// --- exit codes, hints, configuration, JSON --------------------------------------------------------------------------------

const DEFINITION: &str = "version = 1\nreference = [\"rep\"]\n[node]\nrep = { type = \"integer\", must_exist = \"rep.id\" }\n\
    [object.visit]\nvisible.own = 'visit.rep_id = node.rep'\n";

fn database(path: &Path) {
    let sql = "CREATE TABLE rep(id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE visit(id INTEGER PRIMARY KEY, rep_id INTEGER REFERENCES rep(id));
               INSERT INTO rep VALUES(1, 'Anna'); INSERT INTO visit VALUES(1, 1);";
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn deployed() -> Site {
    let site = Site::new(database, DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site
}

/// The error line and the hint line of a failed command.
fn complaint(output: &Output) -> (String, String) {
    let text = stderr(output);
    let line = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix)).unwrap_or_default().trim().to_owned();
    (line("error:"), line("hint:"))
}

fn json(output: &Output) -> serde_json::Value {
    let document: serde_json::Value = serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)));
    assert_eq!(document["version"], 1, "every document has a version");
    document
}

#[test]
fn wrong_input_is_answered_with_what_to_do_and_the_right_exit_code() {
    let site = deployed();
    let bare = tempfile::tempdir().unwrap();
    // (command, exit code, part of the error, part of the hint)
    for (arguments, code, error, hint) in [
        (vec!["node", "add", "SHOP 1"], 2, "", ""),
        (vec!["node", "show", "NOBODY"], 2, "node NOBODY is unknown", "dockmaster node list"),
        (vec!["node", "add", "ANNA", "--set", "rep=9"], 2, "attribute `rep`", ""),
        (vec!["node", "add", "ANNA", "--set", "shop=1"], 2, "attribute `shop`", ""),
        (vec!["node", "add", "ANNA", "--model", "rep"], 2, "model `rep`", ""),
        (vec!["node", "set", "ANNA"], 2, "nothing to set", ""),
        (vec!["node", "clear", "NOBODY"], 2, "node NOBODY is unknown", "dockmaster node list"),
        (vec!["node", "add", "--from", "none.csv"], 2, "read none.csv", ""),
        (vec!["extract", "NOBODY"], 2, "node NOBODY is unknown", "dockmaster node list"),
        (vec!["uninstall"], 2, "has to be confirmed", "--yes"),
        (vec!["init", "hq.db"], 2, "exists already", "move it away"),
        (vec!["init", "none.db", "--config", "new.toml"], 2, "none.db", ""),
        (vec!["dx", "show", "none.dx"], 2, "open none.dx", ""),
        (vec!["dx", "show", "hq.db"], 2, "hq.db: not a .dx file", ""),
        (vec!["status", "--config", "none.toml"], 2, "there is no none.toml", "DOCKMASTER_CONFIG"),
        (vec!["no-such-command"], 2, "unrecognized subcommand", ""),
    ] {
        let output = site.dockmaster(&arguments);
        let (found, advice) = complaint(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(found.contains(error) && !found.is_empty(), "{arguments:?}: {found}");
        assert!(advice.contains(hint) && (hint.is_empty() || !advice.is_empty()), "{arguments:?}: {advice}");
        assert_eq!(stdout(&output), "", "{arguments:?}: an error is not data");
    }
    let (error, hint) = complaint(&run(DOCKMASTER, bare.path(), &["status"]));
    assert!(error.contains("no dockmaster.toml here") && hint.contains("dockmaster init"), "{error} {hint}");
    let missing = run(REMOTE_SYNC, bare.path(), &["status", "none.db"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(complaint(&missing).0.contains("there is no none.db"));
    let not_ours = run(REMOTE_SYNC, site.folder.path(), &["sync", "hq.db"]);
    assert_eq!(not_ours.status.code(), Some(2));
    assert!(complaint(&not_ours).1.contains("remote-sync init"), "{}", stderr(&not_ours));
}

#[test]
fn a_docking_root_in_use_and_a_server_that_is_away_are_worth_another_try() {
    let mut site = deployed();
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    let busy = site.dockmaster(&["run"]);
    assert_eq!(busy.status.code(), Some(3), "{}", stderr(&busy));
    let (error, hint) = complaint(&busy);
    assert!(
        error.contains("is in use by process") && error.contains("(dockmaster)") && hint.contains("dockmaster status"),
        "{error} {hint}"
    );
    let status = site.dockmaster(&["status", "--json"]);
    assert_eq!(json(&status)["nodes"][0]["node"], "ANNA", "status works while the service runs");
    site.stop();
    let quiet = stderr(&site.remote_sync(&["sync", "anna.db", "--quiet"]));
    assert!(quiet.starts_with("error:") && !quiet.contains("next attempt"), "cron mails what is printed: {quiet}");
    let away = site.remote_sync(&["sync", "anna.db"]);
    assert_eq!(away.status.code(), Some(3), "{}", stderr(&away));
    assert!(complaint(&away).0.contains(&address), "{}", stderr(&away));
}

#[test]
fn sr11_an_unknown_and_a_disabled_node_get_one_answer_with_what_to_do() {
    let mut site = deployed();
    site.dockmaster_ok(&["node", "add", "ENDED", "--set", "rep=1"]);
    let tokens = [site.forged_token("ENDED"), site.token("ENDED")];
    site.dockmaster_ok(&["node", "disable", "ENDED"]);
    let address = site.serve();
    let answers = tokens.map(|token| {
        let output = site.remote_sync(&["init", &address, "--token", &token, "x.db"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        complaint(&output)
    });
    assert!(answers[0].1.contains("dockmaster node token"), "{answers:?}");
    assert_eq!(answers[0], answers[1], "the answer does not tell who exists (T18)");
    assert!(!site.path("x.db").exists());
}

#[test]
fn the_configuration_is_found_in_the_documented_order() {
    let site = deployed();
    let elsewhere = tempfile::tempdir().unwrap();
    let config = site.path("dockmaster.toml");
    // By option and by environment from another folder: paths in the file are relative to the file.
    let by_option = run(DOCKMASTER, elsewhere.path(), &["status", "--json", "--config", config.to_str().unwrap()]);
    assert_eq!(json(&by_option)["revision"], 1);
    let mut by_environment = Command::new(DOCKMASTER);
    let by_environment = by_environment.args(["status", "--json"]).current_dir(elsewhere.path()).env("DOCKMASTER_CONFIG", &config);
    assert_eq!(json(&by_environment.output().unwrap())["revision"], 1);
    // The option wins over the environment.
    let both = Command::new(DOCKMASTER)
        .args(["status", "--config", "other.toml"])
        .current_dir(elsewhere.path())
        .env("DOCKMASTER_CONFIG", &config)
        .output()
        .unwrap();
    assert!(complaint(&both).0.contains("other.toml"), "{}", stderr(&both));
    // The working folder comes before /etc.
    assert_eq!(json(&site.dockmaster(&["status", "--json"]))["revision"], 1);
}

#[test]
fn every_table_has_a_json_shape() {
    let site = deployed();
    std::fs::write(site.path("nodes.csv"), "name,rep\nANNA,1\nBEN,1\n").unwrap();
    let added = json(&site.dockmaster(&["node", "add", "--from", "nodes.csv", "--json"]));
    assert_eq!(added["nodes"][1]["node"], "BEN");
    let listed = json(&site.dockmaster(&["node", "list", "--json"]));
    assert_eq!((listed["nodes"][0]["state"].as_str(), listed["nodes"][0]["attributes"]["rep"][0].as_i64()), (Some("registered"), Some(1)));
    assert_eq!(json(&site.dockmaster(&["node", "show", "ANNA", "--json"]))["incarnation"], 0);
    assert_eq!(
        json(&site.dockmaster(&["node", "set", "ANNA", "--set", "rep=", "--json"]))["nodes"][0]["attributes"]["rep"]
            .as_array()
            .map_or(0, Vec::len),
        0
    );
    let extracted = json(&site.dockmaster(&["extract", "BEN", "--json"]));
    assert_eq!((&extracted["started"][0]["incarnation"], &extracted["made"]), (&1.into(), &true.into()));
    site.sqlite3("hq.db", "INSERT INTO visit VALUES(2, 1)");
    assert_eq!(json(&site.dockmaster(&["run", "--json"]))["units"], 1);
    let status = json(&site.dockmaster(&["status", "--json"]));
    assert_eq!(status["log"], status["router"]);
    assert_eq!(status["nodes"][1]["waiting"]["files"], 1);
    assert_eq!(json(&site.dockmaster(&["check", "--json"]))["ok"], true);
    let file = "docking/BEN/outbox/00000001.dx";
    assert_eq!(json(&site.dockmaster(&["dx", "verify", file, "--json"]))["files"][0]["operations"], 1);
    let shown = json(&site.dockmaster(&["dx", "show", file, "--json"]));
    assert!(shown.is_object());
    assert!(stdout(&site.dockmaster(&["dx", "show", file, "--xml"])).starts_with("<?xml"));
    assert!(json(&site.dockmaster(&["deploy", "--yes", "--json"]))["deployed"].is_null(), "nothing to do the second time");
    assert!(json(&site.dockmaster(&["uninstall", "--yes", "--json"]))["triggers"].as_array().is_some_and(|triggers| !triggers.is_empty()));
}

#[test]
fn a_damaged_dx_file_is_named_and_the_others_are_checked_all_the_same() {
    let site = deployed();
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    site.dockmaster_ok(&["extract", "ANNA"]);
    site.sqlite3("hq.db", "INSERT INTO visit VALUES(2, 1)");
    site.dockmaster_ok(&["run"]);
    let good = site.path("docking/ANNA/outbox/00000001.dx");
    let mut bytes = std::fs::read(&good).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(site.path("bad.dx"), &bytes).unwrap();
    let checked = site.dockmaster(&["dx", "verify", "bad.dx", good.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(2));
    let text = stdout(&checked);
    assert!(text.contains("bad.dx: BAD, damaged at byte") && text.contains("00000001.dx: ok, ANNA (1) file 00000001"), "{text}");
    let shown = site.dockmaster(&["dx", "show", "bad.dx"]);
    assert_eq!((shown.status.code(), stdout(&shown).as_str()), (Some(2), ""), "nothing is printed of a bad file");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let site = deployed();
    let mut child = Command::new(DOCKMASTER)
        .arg("status")
        .current_dir(site.folder.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_problem_of_the_definition_fails_check_and_deploy_and_changes_nothing() {
    let site = Site::new(database, &DEFINITION.replace("visit.rep_id", "visit.rep_idd"));
    let before = std::fs::read(site.path("hq.db")).unwrap();
    for arguments in [vec!["check"], vec!["deploy", "--yes"]] {
        let output = site.dockmaster(&arguments);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(
            text.contains("dockmaster.toml:6:") && text.contains("did you mean rep_id?") && text.contains("1 problem, nothing was changed"),
            "{text}"
        );
    }
    assert_eq!(std::fs::read(site.path("hq.db")).unwrap(), before);
    assert!(!site.path("docking").exists());
}

// --- the demo --------------------------------------------------------------------------------------------------------------

/// The script checks each step itself and ends with an error where one did not do its work.
#[test]
fn sr1_to_sr22_mi59_the_demo_runs_the_ten_steps_and_the_way_up() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Command::new("bash")
        .arg("scripts/demo.sh")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("BIN", Path::new(DOCKMASTER).parent().unwrap())
        .env("PLAYGROUND", folder.path().join("playground"))
        .env("PORT", free_port().to_string())
        .output()
        .unwrap();
    let (text, errors) = (stdout(&demo), stderr(&demo));
    assert!(demo.status.success(), "{text}\n{errors}");
    let second_act = ["the amount is above the credit limit", "ANNA:2 waits again", "Sent 1 transaction", "server-wins"];
    let first_act = ["1. Some program", "10. The row is in the databases", "And a row that moves", "CORA: no file names the row"];
    for shown in first_act.into_iter().chain(second_act) {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert!(folder.path().join("playground/anna.db").exists(), "the playground stays");
}

/// The script compares the ends itself.
#[test]
fn one_scenario_comes_to_the_same_end_by_tls_ssh_sftp_and_folder() {
    let folder = tempfile::tempdir().unwrap();
    let ways = Command::new("bash")
        .arg("scripts/ways.sh")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("BIN", Path::new(DOCKMASTER).parent().unwrap())
        .env("PLAYGROUND", folder.path().join("playground"))
        .output()
        .unwrap();
    let (text, errors) = (stdout(&ways), stderr(&ways));
    assert!(ways.status.success(), "{text}\n{errors}");
    for way in ["tls", "ssh", "sftp", "folder"] {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{way} ")));
        assert_eq!(lines.count(), 5, "{way}: {text}");
    }
    assert!(text.contains("Every way ended with the same rows."), "{text}");
}

// --- status ----------------------------------------------------------------------------------------------------------------

#[test]
fn status_names_what_needs_a_person_with_the_command_and_ends_with_1() {
    use dockmaster::base::ids::{ContentHash, FileNo, Incarnation, InstallId, TxnId};
    use dockmaster::docking::sessions::{Mark, SessionsDb};
    use dockmaster::session::message::AppliedTo;
    let site = deployed();
    for node in ["ANNA", "BEN", "CARL"] {
        site.dockmaster_ok(&["node", "add", node, "--set", "rep=1"]);
    }
    site.dockmaster_ok(&["extract", "ANNA", "BEN"]);
    let calm = site.dockmaster(&["status"]);
    assert_eq!(calm.status.code(), Some(0), "{}", stdout(&calm));
    // A node that two machines use, one that has not called for 40 days, and a table that changed.
    let sessions = SessionsDb::open(&site.path("docking/sessions.db")).unwrap();
    sessions.alert("ANNA", "two copies of this node", 1).unwrap();
    let now = i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let applied = AppliedTo { file: FileNo(0), unit: TxnId(1), hash: ContentHash::default() };
    let (node, incarnation, install_id) = ("BEN".parse().unwrap(), Incarnation(1), InstallId([7; 16]));
    sessions.set_mark(&Mark { node, incarnation, install_id, received: FileNo(0), applied, last_seen: now - 40 * 86_400 }).unwrap();
    site.sqlite3("hq.db", "ALTER TABLE visit ADD COLUMN note TEXT");
    let output = site.dockmaster(&["status"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stdout(&output);
    for said in [
        ", needs a person",
        "! table visit is stopped",
        "ANNA  stopped",
        "two copies of this node: dockmaster node show ANNA",
        "BEN   silent      40 d",
        "dockmaster node disable BEN",
        "CARL  registered",
        "2 nodes need a person.",
    ] {
        assert!(text.contains(said), "`{said}` in\n{text}");
    }
    let document = json(&site.dockmaster(&["status", "--json"]));
    assert_eq!(document["nodes"][1]["state"], "silent");
    assert_eq!(document["needs"][0]["command"], "dockmaster deploy");
    let shown = site.dockmaster(&["node", "show", "ANNA"]);
    assert!(shown.status.code() == Some(1) && stdout(&shown).contains("dockmaster node clear ANNA"), "{}", stdout(&shown));
    // Told once more with other words it is one line of `status`; dealt with, it is gone; a disabled node needs nobody.
    sessions.alert("ANNA", "two copies again", 2).unwrap();
    assert!(stdout(&site.dockmaster(&["status"])).contains("two copies again (and 1 more): dockmaster node show ANNA"));
    assert_eq!(site.dockmaster_ok(&["node", "clear", "ANNA"]).trim(), "ANNA: 2 alerts taken back");
    assert_eq!(site.dockmaster(&["node", "show", "ANNA"]).status.code(), Some(0));
    assert_eq!(json(&site.dockmaster(&["node", "clear", "ANNA", "--json"]))["cleared"], 0);
    sessions.alert("ANNA", "two copies of this node", 3).unwrap();
    site.dockmaster_ok(&["node", "disable", "ANNA"]);
    assert!(stdout(&site.dockmaster(&["status"])).contains("1 node needs a person."), "only BEN");
}

#[test]
fn the_client_says_what_waits_in_its_inbox_and_what_was_put_aside() {
    let mut site = deployed();
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site.stop();
    site.sqlite3("hq.db", "INSERT INTO visit VALUES(2, 1)");
    site.dockmaster_ok(&["run"]);
    let config = std::fs::read_to_string(site.path("anna.db.sync/remote-sync.toml")).unwrap();
    let address_now = site.serve();
    std::fs::write(site.path("anna.db.sync/remote-sync.toml"), config.replace(&address, &address_now)).unwrap();
    site.remote_sync_ok(&["sync", "anna.db", "--only", "receive"]);
    std::fs::write(site.path("anna.db.sync/quarantine/00000007.dx"), "x").unwrap();
    let status = json(&site.remote_sync(&["status", "anna.db", "--json"]));
    assert_eq!((status["waiting_files"].as_u64(), status["quarantine"][0].as_str()), (Some(1), Some("00000007.dx")));
    let text = site.remote_sync_ok(&["status", "anna.db"]);
    assert!(text.contains("1 file received and not applied: remote-sync sync anna.db --only apply"), "{text}");
    site.remote_sync_ok(&["sync", "anna.db", "--only", "apply"]);
    assert_eq!(json(&site.remote_sync(&["status", "anna.db", "--json"]))["waiting_files"], 0);
}

#[test]
fn mi11_pending_and_status_show_what_is_not_finished_and_pending_ends_with_1_if_some_of_it_is_held() {
    let mut site = deployed();
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    assert_eq!(site.remote_sync_ok(&["pending", "anna.db"]).trim(), "No local changes are pending.");
    assert_eq!(json(&site.remote_sync(&["pending", "anna.db", "--json"]))["units"], serde_json::json!([]));
    let quiet = site.remote_sync_ok(&["status", "anna.db"]);
    assert!(!quiet.contains("local changes"), "{quiet}");
    site.sqlite3(
        "anna.db",
        "BEGIN; INSERT INTO dock_txn_mark VALUES('order 17'); INSERT INTO visit VALUES(50, 1); DELETE FROM visit WHERE id = 1;
         INSERT INTO dock_txn_mark VALUES('order 17'); COMMIT",
    );
    // `pending` cuts first.
    let text = site.remote_sync_ok(&["pending", "anna.db"]);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["UNIT", "STATE", "LABEL", "TABLE", "KEY", "OP"], "{text}");
    assert!(rows.contains(&vec!["1", "pending", "order", "17", "visit", "50", "insert"]), "{text}");
    assert!(rows.contains(&vec!["1", "pending", "order", "17", "visit", "1", "delete"]), "{text}");
    let unit = &json(&site.remote_sync(&["pending", "anna.db", "--json"]))["units"][0];
    assert_eq!((unit["unit"].as_u64(), unit["state"].as_str(), unit["label"].as_str()), (Some(1), Some("pending"), Some("order 17")));
    assert_eq!(
        (&unit["file"], &unit["suspended"], &unit["reason"]),
        (&serde_json::Value::Null, &serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!(unit["rows"][0], serde_json::json!({ "table": "visit", "key": "50", "op": "insert" }));
    let status = json(&site.remote_sync(&["status", "anna.db", "--json"]));
    assert_eq!((&status["pending_units"], &status["sent_units"], &status["pending_rows"]), (&1.into(), &0.into(), &2.into()));
    let text = site.remote_sync_ok(&["status", "anna.db"]);
    assert!(text.contains("local changes: 2 rows in 1 unit (1 to send): remote-sync pending anna.db"), "{text}");
    // What a session and the server make of it, written by hand.
    site.sqlite3("anna.db", "UPDATE dock_unit SET state = 'held', reason = 'visit 1 has a bill'");
    let held = site.remote_sync(&["pending", "anna.db"]);
    assert_eq!(held.status.code(), Some(1));
    assert!(stdout(&held).contains("! unit 1: visit 1 has a bill"), "{}", stdout(&held));
    assert!(site.remote_sync_ok(&["status", "anna.db"]).contains("(1 held by the server)"));
    let (error, _) = complaint(&site.remote_sync(&["pending", "nowhere.db"]));
    assert!(error.contains("there is no nowhere.db"), "{error}");
}

#[test]
fn a_new_data_store_takes_nothing_over_from_the_wal_of_the_former_one() {
    let site = deployed();
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    // Somebody reads while the last pass ends, so its WAL stays behind with the pages of the former data store in it.
    let reader = rusqlite::Connection::open_with_flags(site.path("docking/cds.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM cds_state").unwrap();
    site.sqlite3("hq.db", "WITH n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO visit SELECT i, 1 FROM n");
    site.dockmaster_ok(&["extract", "ANNA"]);
    drop(reader);
    assert!(std::fs::metadata(site.path("docking/cds.db-wal")).unwrap().len() > 0, "the case that is tested");
    site.dockmaster_ok(&["node", "disable", "ANNA"]);
    site.sqlite3("hq.db", "ALTER TABLE visit ADD COLUMN note TEXT");
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["run"]);
    let cds = rusqlite::Connection::open(site.path("docking/cds.db")).unwrap();
    let sound: String = cds.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let text = site.dockmaster_ok(&["status"]);
    assert!(text.contains("revision 2") && !text.contains("behind"), "{text}");
}

#[test]
fn a_docking_root_that_is_gone_is_named_and_deploy_fills_a_new_one() {
    let site = Site::new(database, DEFINITION);
    for command in [["run"].as_slice(), &["serve"], &["extract", "ANNA"], &["node", "list"]] {
        let output = site.dockmaster(command);
        assert_eq!(
            (output.status.code(), complaint(&output).1.as_str()),
            (Some(2), "dockmaster deploy"),
            "{command:?}: {}",
            stderr(&output)
        );
        assert!(!site.path("docking").exists(), "{command:?} leaves nothing behind where nothing is deployed");
    }
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    site.dockmaster_ok(&["extract", "ANNA"]);
    std::fs::rename(site.path("docking"), site.path("away")).unwrap();
    for command in ["run", "serve"] {
        let output = site.dockmaster(&[command]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let (error, hint) = complaint(&output);
        assert!(error.contains("there is no data store") && hint.contains("dockmaster deploy"), "{command}: {error} {hint}");
    }
    let status = site.dockmaster(&["status"]);
    assert!(status.status.code() == Some(1) && stdout(&status).contains("no data store"), "{}", stdout(&status));
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["run"]);
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0));
}
