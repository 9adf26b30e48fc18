//! Wrong input through the real programs: each kind has its own message, names the file, row, node or table, ends with the
//! documented exit code, and leaves everything as it was.

use crate::crm::{self, DEFINITION, complaint, differences, dx_files, in_step, local, routed, serve_again, server_sql};
use crate::harness::{Site, literals};
use std::io::{Read, Write};
use std::process::Output;

/// Demands an exit code, the error line and something in the hint line (`""` = no hint).
#[track_caller]
fn answered(output: &Output, code: i32, error: &str, hint: &str) {
    let (found, advice) = complaint(output);
    let found: Vec<&str> = found.split(' ').map(without_id).collect();
    assert_eq!((output.status.code(), found.join(" ").as_str()), (Some(code), error), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(advice.contains(hint) && advice.is_empty() == hint.is_empty(), "hint: {advice}");
}

/// Identities are random: a word of 32 hexadecimal digits is `ID`.
fn without_id(word: &str) -> &str {
    let bare = word.trim_matches(['(', ')', ',']);
    if bare.len() == 32 && bare.bytes().all(|byte| byte.is_ascii_hexdigit()) { "ID" } else { word }
}

fn opportunity(site: &Site, database: &str, id: i64) -> Vec<String> {
    literals(&site.path(database), &format!("SELECT name FROM opportunity WHERE id = {id}"))
}

fn insert(id: i64) -> String {
    format!("INSERT INTO opportunity VALUES({id}, 9, 4, 'new {id}', 1);")
}

fn flip(path: &std::path::Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x01;
    std::fs::write(path, bytes).unwrap();
}

/// The things that wait for a person, as `status` says them.
fn needs(site: &Site) -> Vec<String> {
    let output = site.dockmaster(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = status["nodes"].as_array().unwrap().iter().flat_map(|node| node["needs"].as_array().unwrap());
    let all: Vec<String> =
        status["needs"].as_array().unwrap().iter().chain(nodes).map(|need| need["what"].as_str().unwrap().to_owned()).collect();
    assert_eq!(output.status.code(), Some(i32::from(!all.is_empty())));
    all
}

#[test]
fn bad_rules_are_all_named_with_place_and_remedy_and_nothing_is_changed() {
    let wrong = DEFINITION
        .replace("opportunity.position_id = node.position'", "opportunity.postion_id = node.position'")
        .replace("node.team'", "node.teams'");
    let site = Site::new(crm::database, &wrong);
    let before = std::fs::read(site.path("hq.db")).unwrap();
    for command in [vec!["check"], vec!["deploy", "--yes"]] {
        let output = site.dockmaster(&command);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for part in [
            "dockmaster.toml:19:32 opportunity.own: table opportunity has no column postion_id   did you mean position_id?\n",
            "dockmaster.toml:20:51 opportunity.manager: a node has no `teams`   [node] declares employee, position, team\n",
            "2 problems, nothing was changed",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    assert_eq!(std::fs::read(site.path("hq.db")).unwrap(), before);
    assert!(!site.path("docking").exists());
}

#[test]
fn sr11_unknown_and_disabled_nodes_are_refused_and_a_live_session_is_cut_off() {
    let mut site = crm::running(&["ANNA"]);
    let address = site.address().to_owned();
    let unknown = site.remote_sync(&["init", &address, "--token", &site.forged_token("ANNA"), "x.db"]);
    answered(&unknown, 2, &format!("the server at {address} refused: unknown, disabled or wrong node"), "dockmaster node token");
    let mut watching = site.remote_sync_started(&["watch", "anna.db"]);
    crm::watching(&site);
    site.dockmaster_ok(&["node", "disable", "ANNA"]);
    let ended = crm::cut_off(&mut watching);
    let mut said = String::new();
    watching.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.code(), Some(2), "{said}");
    assert!(said.contains("dockmaster node show ANNA"), "{said}");
    let disabled = site.remote_sync(&["sync", "anna.db"]);
    answered(&disabled, 2, "the server refused ANNA: unknown, disabled or wrong node", "dockmaster node show ANNA");
    site.stop();
}

#[test]
fn a_database_of_one_server_called_at_another_exchanges_nothing() {
    let mut site = crm::running(&["ANNA"]);
    site.stop();
    let mut test = Site::new(crm::database, DEFINITION);
    std::fs::write(
        test.path("dockmaster.toml"),
        std::fs::read_to_string(test.path("dockmaster.toml")).unwrap().replace("\"HQ\"", "\"TEST\""),
    )
    .unwrap();
    test.dockmaster_ok(&["deploy", "--yes"]);
    test.dockmaster_ok(&["node", "add", "ANNA", "--set", "employee=4"]);
    let address = test.serve();
    let config = site.path("anna.db.sync/remote-sync.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let old = text.lines().find(|line| line.starts_with("server = ")).unwrap().to_owned();
    std::fs::write(&config, text.replace(&old, &format!("server = \"{address}\""))).unwrap();
    let before = crm::traces(&site.path("anna.db.sync"), "DX");
    answered(
        &site.remote_sync(&["sync", "anna.db"]),
        2,
        &format!("{address} does not prove that it is the server of this database"),
        "nothing was exchanged",
    );
    assert_eq!(crm::traces(&site.path("anna.db.sync"), "DX"), before);
    test.stop();
}

/// The key and certificates of ANNA.
fn identity(site: &Site) -> dockmaster::trust::identity::NodeIdentity {
    let text = std::fs::read_to_string(site.path("anna.db.sync/identity/node.pem")).unwrap();
    dockmaster::trust::identity::NodeIdentity::from_text(&text).unwrap()
}

/// Sends one message as a client of another age would, and returns the answer.
fn greeted(site: &Site, body: &[u8]) -> dockmaster::session::message::Message {
    use dockmaster::trust::tls;
    let config = tls::node(&identity(site), tls::SESSION).unwrap();
    let end = rustls::ClientConnection::new(config.into(), tls::server_name().unwrap()).unwrap();
    let mut line = rustls::StreamOwned::new(end, std::net::TcpStream::connect(site.address()).unwrap());
    line.write_all(&u32::try_from(body.len()).unwrap().to_le_bytes()).unwrap();
    line.write_all(body).unwrap();
    let mut answer = Vec::new();
    line.read_to_end(&mut answer).unwrap();
    dockmaster::session::codec::decode(&answer[4..].to_vec().into()).unwrap()
}

#[test]
fn versions_without_a_common_one_are_named_on_both_sides() {
    use dockmaster::session::codec::{decode, encode};
    use dockmaster::session::message::{Message, Refusal, RefusalCode};
    let mut site = crm::running(&["ANNA"]);
    let hello = dockmaster::session::client::init_hello("ANNA", dockmaster::base::ids::InstallId([1; 16]), None);
    let mut body = encode(&Message::Hello(Box::new(hello.clone()))).unwrap().to_vec();
    assert_eq!(&body[2..10], b"DOCKSESS");
    body[10..14].copy_from_slice(&[7, 0, 9, 0]);
    let Message::Refused(refusal) = greeted(&site, &body) else { panic!("a hello of protocol 7 to 9 is refused") };
    assert_eq!(refusal.code, RefusalCode::Protocol);
    assert!(refusal.text.contains("protocol 1") && refusal.text.contains("7 to 9"), "{refusal}");
    let mut newer = hello;
    (newer.dx.min, newer.dx.max) = (4, 5);
    let Message::Refused(refusal) = greeted(&site, &encode(&Message::Hello(Box::new(newer))).unwrap()) else {
        panic!("a hello of .dx 4 to 5 is refused")
    };
    assert_eq!(refusal.code, RefusalCode::DxFormat);
    site.stop();

    // The client's side: a server of another age answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let authority = std::fs::read_to_string(site.path("identity/authority.pem")).unwrap();
    let authority = dockmaster::trust::authority::Authority::from_text(&authority).unwrap();
    let server = std::thread::spawn(move || {
        let config = dockmaster::trust::tls::server(&authority.into()).unwrap();
        let end = rustls::ServerConnection::new(config.into()).unwrap();
        let mut line = rustls::StreamOwned::new(end, listener.accept().unwrap().0);
        let mut length = [0; 4];
        line.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        line.read_exact(&mut body).unwrap();
        assert!(matches!(decode(&body.into()), Ok(Message::Hello(_))));
        let text = "this server speaks protocol 7 to 9, the client 1 to 1".to_owned();
        let answer = encode(&Message::Refused(Refusal { code: RefusalCode::Protocol, text })).unwrap();
        line.write_all(&u32::try_from(answer.len()).unwrap().to_le_bytes()).unwrap();
        line.write_all(&answer).unwrap();
        let _ = line.read_to_end(&mut Vec::new());
    });
    let config = site.path("anna.db.sync/remote-sync.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let old = text.lines().find(|line| line.starts_with("server = ")).unwrap().to_owned();
    std::fs::write(&config, text.replace(&old, &format!("server = \"{address}\""))).unwrap();
    answered(
        &site.remote_sync(&["sync", "anna.db"]),
        2,
        "the server refused ANNA: this server speaks protocol 7 to 9, the client 1 to 1",
        "remote-sync --version",
    );
    server.join().unwrap();
}

#[test]
fn d3_a_file_of_another_format_or_another_node_or_a_damaged_one_in_the_inbox_is_put_aside_and_fetched_again() {
    let mut site = crm::running(&["ANNA", "BERT"]);
    server_sql(&site, &insert(5000));
    routed(&site);
    for node in ["ANNA", "BERT"] {
        site.remote_sync_ok(&["sync", &local(node), "--only", "receive"]);
    }
    let inbox = dx_files(&site, "anna.db.sync/inbox").pop().unwrap();
    let good = std::fs::read(&inbox).unwrap();
    let mut newer = good.clone();
    newer[8] = 9;
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 0x10;
    let foreign = std::fs::read(dx_files(&site, "bert.db.sync/inbox").pop().unwrap()).unwrap();
    for (bytes, reason) in [
        (newer, "format version 9; this program reads up to version 3"),
        (damaged, "damaged at byte"),
        (foreign, "node is BERT, expected ANNA"),
    ] {
        std::fs::write(&inbox, bytes).unwrap();
        let applied = site.remote_sync(&["sync", "anna.db", "--only", "apply"]);
        assert!(opportunity(&site, "anna.db", 5000).is_empty(), "nothing of it is applied");
        let said = String::from_utf8_lossy(&applied.stderr).into_owned();
        assert!(said.contains("00000001.dx") && said.contains(reason), "{reason}: {said}");
        let status = site.remote_sync_ok(&["status", "anna.db"]);
        assert!(status.contains("put aside: 00000001.dx"), "{status}");
        let written = std::fs::read_to_string(site.path("anna.db.sync/quarantine/00000001.dx.reason")).unwrap();
        assert!(written.contains(reason), "{written}");
        std::fs::remove_dir_all(site.path("anna.db.sync/quarantine")).unwrap();
        std::fs::create_dir(site.path("anna.db.sync/quarantine")).unwrap();
        site.remote_sync_ok(&["sync", "anna.db", "--only", "receive"]);
        assert_eq!(std::fs::read(&inbox).unwrap(), good, "it came again");
    }
    in_step(&site, &["ANNA", "BERT"]);
    site.stop();
}

#[test]
fn d3_a_damaged_file_in_the_outbox_is_named_on_both_sides_and_nothing_of_it_is_applied() {
    let mut site = crm::running(&["ANNA", "BERT"]);
    server_sql(&site, &insert(5000));
    routed(&site);
    let file = dx_files(&site, "docking/ANNA/outbox").pop().unwrap();
    let length = std::fs::metadata(&file).unwrap().len() as usize;
    flip(&file, length / 2);
    answered(&site.remote_sync(&["sync", "anna.db"]), 2, "00000001.dx is damaged in the server's outbox", "dockmaster status");
    assert!(opportunity(&site, "anna.db", 5000).is_empty());
    assert_eq!(needs(&site), ["file 00000001 is damaged in the server's outbox"]);
    let verified = site.dockmaster(&["dx", "verify", file.to_str().unwrap()]);
    assert_eq!(verified.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("00000001.dx: BAD, damaged at byte"));
    in_step(&site, &["BERT"]);
    // A new extract always helps.
    site.remote_sync_ok(&["init", site.address(), "--token", &site.token("ANNA"), "--replace", "--renew", "anna.db"]);
    crm::equal(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn f13_a_file_that_comes_before_its_turn_waits_and_the_missing_one_is_named() {
    let mut site = crm::running(&["ANNA"]);
    for id in 5000..5002 {
        server_sql(&site, &insert(id));
        routed(&site);
        site.remote_sync_ok(&["sync", "anna.db", "--only", "receive"]);
    }
    let inbox = dx_files(&site, "anna.db.sync/inbox");
    assert_eq!(inbox.len(), 2);
    std::fs::remove_file(&inbox[0]).unwrap();
    site.remote_sync(&["sync", "anna.db", "--only", "apply"]);
    assert!(opportunity(&site, "anna.db", 5001).is_empty());
    let status = site.remote_sync_ok(&["status", "anna.db"]);
    assert!(status.contains("1 file waits for 00000001"), "{status}");
    in_step(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn a_docking_root_in_use_is_named_with_its_holder() {
    let mut site = crm::running(&[]);
    for command in ["serve", "run"] {
        let output = site.dockmaster(&[command]);
        let (error, hint) = complaint(&output);
        assert_eq!(output.status.code(), Some(3), "{error}");
        assert!(error.contains("docking root") && error.contains("is in use by process") && error.contains("since"), "{error}");
        assert!(hint.contains("dockmaster status"), "{hint}");
    }
    site.stop();
    site.dockmaster_ok(&["run"]);
}

#[test]
fn a_table_changed_under_the_running_service_stops_by_name_and_the_others_go_on() {
    let mut site = crm::running(&["ANNA"]);
    server_sql(&site, "ALTER TABLE contact ADD COLUMN phone TEXT; UPDATE contact SET phone = '1', name = 'renamed'");
    server_sql(&site, &insert(5000));
    routed(&site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(opportunity(&site, "anna.db", 5000), ["'new 5000'"], "other tables go on");
    assert!(literals(&site.path("anna.db"), "SELECT id FROM contact WHERE name = 'renamed'").is_empty());
    // Accounts are seen through contacts, and their team travels with them.
    let because = "what nodes see of it depends on contact";
    assert_eq!(
        needs(&site),
        [
            "table contact is stopped: its column `phone` was added; other tables go on".to_owned(),
            format!("table account is stopped: {because}; other tables go on"),
            format!("table account_team is stopped: {because}; other tables go on"),
        ]
    );
    // The definition would send the new column, so only `deploy` helps; without it the table fits again, and what was left out comes.
    server_sql(&site, "ALTER TABLE contact DROP COLUMN phone; UPDATE contact SET name = 'renamed again' WHERE id < 10");
    in_step(&site, &["ANNA"]);
    assert_eq!(needs(&site), [""; 0]);
    site.stop();
}

#[test]
fn r14_another_server_database_in_its_place_is_noticed_and_nothing_is_read() {
    let mut site = crm::running(&["ANNA"]);
    site.stop();
    // A copy of yesterday: the same server, another history.
    literals(&site.path("hq.db"), "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(site.path("hq.db"), site.path("backup.db")).unwrap();
    for id in 5000..5003 {
        server_sql(&site, &insert(id));
        site.dockmaster_ok(&["run"]);
    }
    literals(&site.path("hq.db"), "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(site.path("backup.db"), site.path("hq.db")).unwrap();
    for id in 6000..6010 {
        server_sql(&site, &insert(id));
    }
    let before = dx_files(&site, "docking/txnproc").len();
    for command in ["run", "serve"] {
        let output = site.dockmaster(&[command]);
        answered(
            &output,
            2,
            "Transaction Processor: hq.db: this is not the database that was read last: it was read under mark ID its own marks are ID and ID",
            "nothing was read or sent",
        );
    }
    assert_eq!(dx_files(&site, "docking/txnproc").len(), before);
    // A database of another server at the same path.
    let other = Site::new(crm::database, DEFINITION);
    other.dockmaster_ok(&["deploy", "--yes"]);
    literals(&other.path("hq.db"), "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(other.path("hq.db"), site.path("hq.db")).unwrap();
    let error = "Transaction Processor: hq.db: this is not the database that was read last: it was read under mark ID its own marks are ID and none";
    answered(&site.dockmaster(&["run"]), 2, error, "nothing was read or sent");
}

#[test]
fn r38_a_null_key_stops_its_table_by_name_and_no_statement_of_a_program() {
    let sql = "CREATE TABLE rep(id INTEGER PRIMARY KEY); CREATE TABLE visit(id TEXT PRIMARY KEY, rep_id INTEGER); CREATE TABLE call(id INTEGER PRIMARY KEY, rep_id INTEGER); INSERT INTO rep VALUES(1)";
    let definition = "version = 1\nreference = [\"rep\"]\n[node]\nrep = { type = \"integer\", must_exist = \"rep.id\" }\n[object.visit]\nvisible.own = 'visit.rep_id = node.rep'\n[object.call]\nvisible.own = 'call.rep_id = node.rep'\n";
    let mut site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap(), definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    assert!(site.sqlite3("hq.db", "INSERT INTO visit VALUES(NULL, 1), ('a', 1); INSERT INTO call VALUES(1, 1);").status.success());
    routed(&site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(literals(&site.path("anna.db"), "SELECT * FROM call"), ["1 | 1"]);
    assert!(literals(&site.path("anna.db"), "SELECT * FROM visit").is_empty());
    let reason = "a row with NULL in its primary key (id) was written, and cannot be told apart (log row 4)";
    assert_eq!(needs(&site), [format!("table visit is stopped: {reason}; other tables go on")]);
    site.stop();
}

#[test]
fn a_database_that_is_missing_or_none_is_named_and_never_made() {
    let site = Site::new(|_| (), DEFINITION);
    for command in [vec!["check"], vec!["deploy", "--yes"], vec!["serve"], vec!["run"], vec!["status"], vec!["node", "list"]] {
        let output = site.dockmaster(&command);
        let (error, _) = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {error}");
        assert!(error.contains("hq.db"), "{command:?}: {error}");
        assert!(!site.path("hq.db").exists(), "{command:?}");
    }
    std::fs::write(site.path("hq.db"), "this is a letter, not a database\n".repeat(200)).unwrap();
    for command in [vec!["check"], vec!["deploy", "--yes"], vec!["serve"], vec!["status"]] {
        let output = site.dockmaster(&command);
        let (error, _) = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {error}");
        assert!(error.contains("hq.db") && error.contains("not a database"), "{command:?}: {error}");
    }
    std::fs::write(site.path("letter.db"), "this is a letter, not a database\n".repeat(200)).unwrap();
    for command in [vec!["sync", "letter.db"], vec!["status", "letter.db"]] {
        let output = site.remote_sync(&command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(complaint(&output).0.contains("letter.db"), "{command:?}: {}", complaint(&output).0);
    }
}

#[test]
fn sync_without_init_and_init_over_a_database_are_refused() {
    let mut site = crm::running(&["ANNA"]);
    answered(
        &site.remote_sync(&["sync", "none.db"]),
        2,
        "none.db.sync/remote-sync.toml is missing: this database was never initialised",
        "remote-sync init",
    );
    assert!(!site.path("none.db").exists() && !site.path("none.db.sync").exists());
    let before = literals(&site.path("anna.db"), "SELECT * FROM opportunity");
    let address = site.address().to_owned();
    answered(
        &site.remote_sync(&["init", &address, "--token", &site.token("BERT"), "anna.db"]),
        2,
        "anna.db exists and is not empty; it is replaced only with --replace",
        "--replace",
    );
    rusqlite::Connection::open(site.path("app.db")).unwrap().execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    answered(
        &site.remote_sync(&["init", &address, "--token", &site.token("BERT"), "app.db"]),
        2,
        "app.db exists and is not empty; it is replaced only with --replace",
        "--replace",
    );
    assert_eq!(literals(&site.path("app.db"), "SELECT a FROM t"), ["1"]);
    assert_eq!(literals(&site.path("anna.db"), "SELECT * FROM opportunity"), before);
    assert_eq!(differences(&site, "anna.db", 4), "");
    site.stop();
    serve_again(&mut site);
    in_step(&site, &["ANNA"]);
    site.stop();
}
