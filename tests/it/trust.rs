//! Who may come in: tokens, keys, certificates, and what somebody on the line can do. The real programs over real TLS.

mod line;

use crate::crm::{self, complaint, in_step, local, server_sql};
use crate::harness::{Program, Site, literals};
use dockmaster::base::ids::{NodeName, ServerId};
use dockmaster::store::sqlite::ServerDatabase;
use dockmaster::trust::authority::Authority;
use dockmaster::trust::identity::NodeIdentity;
use dockmaster::trust::keys::KeyPair;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

const NO: &str = "unknown, disabled or wrong node";

/// Asserts that a call was refused as whatever is wrong with a node or token is.
fn turned_away(output: &Output) {
    let (error, hint) = complaint(output);
    assert_eq!(output.status.code(), Some(2), "{error} {hint}");
    assert!(error.contains(NO) && hint.contains("dockmaster node"), "{error} {hint}");
}

fn init(site: &Site, token: &str, database: &str) -> Output {
    site.remote_sync(&["init", site.address(), "--token", token, database])
}

fn identity_file(site: &Site, node: &str) -> PathBuf {
    site.path(&format!("{}.sync/identity/node.pem", local(node)))
}

fn identity_of(site: &Site, node: &str) -> NodeIdentity {
    NodeIdentity::from_text(&fs::read_to_string(identity_file(site, node)).unwrap()).unwrap()
}

fn authority(site: &Site) -> Authority {
    Authority::from_text(&fs::read_to_string(site.path("identity/authority.pem")).unwrap()).unwrap()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn sql(site: &Site, sql: &str) {
    server_sql(site, sql);
}

#[test]
fn x19_a_token_lets_one_machine_in_and_nobody_after_it() {
    let mut site = crm::running(&[]);
    let token = site.token("ANNA");
    site.remote_sync_ok(&["init", site.address(), "--token", &token, "anna.db"]);
    turned_away(&init(&site, &token, "second.db"));
    assert!(!site.path("second.db").exists());
    // The database that is there goes on, and has a key of its own that nobody else may read.
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(fs::metadata(identity_file(&site, "ANNA")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(site.path("identity/authority.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(site.path("identity")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(site.path("identity/.gitignore")).unwrap(), "*\n");
    let shown = site.dockmaster_ok(&["node", "show", "ANNA"]);
    assert!(!shown.contains("DM1-"), "a token is shown once: {shown}");
    site.stop();
}

#[test]
fn x19_a_token_ends_after_a_day_with_its_node_and_with_the_next_token() {
    let mut site = crm::running(&[]);
    let ended = site.token("ANNA");
    sql(&site, "UPDATE dock_node_key SET token_until = unixepoch() - 1 WHERE node = 'ANNA'");
    turned_away(&init(&site, &ended, "anna.db"));
    let former = site.token("BERT");
    let newer = site.token("BERT");
    turned_away(&init(&site, &former, "bert.db"));
    site.remote_sync_ok(&["init", site.address(), "--token", &newer, "bert.db"]);
    let of_disabled = site.token("CORA");
    site.dockmaster_ok(&["node", "disable", "CORA"]);
    turned_away(&init(&site, &of_disabled, "cora.db"));
    turned_away(&init(&site, &site.forged_token("ANNA"), "anna.db"));
    for wrong in ["", "hello", "DM1-", &newer[..60], &newer.replace(&newer[20..22], "88")] {
        let output = init(&site, wrong, "x.db");
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(complaint(&output).0.contains("token") && !complaint(&output).0.contains(&newer[8..30]), "{:?}", complaint(&output));
    }
    site.stop();
}

#[test]
fn f22_rm17_the_machine_before_is_cut_off_as_soon_as_the_next_one_uses_its_token() {
    let mut site = crm::running(&["ANNA"]);
    let mut watching = site.remote_sync_started(&["watch", "anna.db"]);
    crm::watching(&site);
    let token = site.token("ANNA");
    std::thread::sleep(Duration::from_millis(100));
    assert!(watching.try_wait().unwrap().is_none(), "a token that nobody used changes nothing");
    // The first machine holds the session, so the new one comes in as soon as that is cut off.
    let next = site.remote_sync_started(&["init", site.address(), "--token", &token, "--renew", "next.db"]);
    let ended = crm::cut_off(&mut watching);
    assert_eq!(ended.code(), Some(2));
    let next = next.wait_with_output().unwrap();
    assert!(next.status.success(), "{}", String::from_utf8_lossy(&next.stderr));
    turned_away(&site.remote_sync(&["sync", "anna.db"]));
    site.remote_sync_ok(&["sync", "next.db"]);
    site.stop();
}

/// Each of the nodes calls with the key of each other: a name counts for nothing without its key.
#[test]
fn t4_a_name_counts_only_with_its_own_key() {
    let mut site = crm::running(&crm::NODES.map(|(node, _)| node));
    let nodes = crm::NODES.map(|(node, _)| node);
    let files = nodes.map(|node| fs::read(identity_file(&site, node)).unwrap());
    server_sql(&site, "UPDATE opportunity SET name = 'for those who may' WHERE id % 2 = 0");
    crm::routed(&site);
    for (node, own) in nodes.iter().zip(&files) {
        let before = literals(&site.path(&local(node)), "SELECT * FROM opportunity ORDER BY id");
        for other in files.iter().filter(|other| *other != own) {
            fs::write(identity_file(&site, node), other).unwrap();
            turned_away(&site.remote_sync(&["sync", &local(node)]));
        }
        assert_eq!(literals(&site.path(&local(node)), "SELECT * FROM opportunity ORDER BY id"), before, "nothing came");
        fs::write(identity_file(&site, node), own).unwrap();
    }
    in_step(&site, &nodes);
    site.stop();
}

/// A key that the authority signed, and that no node has: somebody could read `authority.pem`, or a node was deleted.
#[test]
fn t4_a_certificate_of_the_right_authority_for_a_key_of_nobody_is_refused() {
    let mut site = crm::running(&["ANNA"]);
    let own = identity_of(&site, "ANNA");
    let key = KeyPair::generate().unwrap();
    let node: NodeName = "ANNA".parse().unwrap();
    let certificate = authority(&site).issue_to_node(own.server(), &node, &key.public(), now()).unwrap();
    let forged = NodeIdentity::new(key, certificate, own.authority().clone()).unwrap();
    fs::write(identity_file(&site, "ANNA"), forged.to_text()).unwrap();
    turned_away(&site.remote_sync(&["sync", "anna.db"]));
    fs::write(identity_file(&site, "ANNA"), own.to_text()).unwrap();
    site.dockmaster_ok(&["node", "delete", "ANNA", "--yes"]);
    turned_away(&site.remote_sync(&["sync", "anna.db"]));
    site.stop();
}

/// Puts a certificate into a node's identity that was made at another time.
fn certificate_of(site: &Site, node: &str, made: i64) -> Vec<u8> {
    let own = identity_of(site, node);
    let server: ServerId = own.server();
    let certificate = authority(site).issue_to_node(server, own.node(), &own.public(), made).unwrap();
    let bytes = certificate.to_vec();
    fs::write(identity_file(site, node), own.renewed(certificate).unwrap().to_text()).unwrap();
    bytes
}

#[test]
fn x19_a_ship_that_was_silent_for_two_hundred_days_gets_a_new_certificate_by_its_key() {
    const DAY: i64 = 24 * 60 * 60;
    let mut site = crm::running(&["ANNA", "BERT"]);
    // Silent for long; about to end; made by a clock that was ahead.
    for made in [now() - 200 * DAY, now() - 61 * DAY, now() + 300 * DAY] {
        let old = certificate_of(&site, "ANNA", made);
        server_sql(&site, &format!("UPDATE opportunity SET name = 'made {made}' WHERE id <= 50"));
        in_step(&site, &["ANNA"]);
        assert_ne!(identity_of(&site, "ANNA").certificate().to_vec(), old, "a new one");
    }
    let young = certificate_of(&site, "ANNA", now() - 30 * DAY);
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(identity_of(&site, "ANNA").certificate().to_vec(), young, "not before it is time");
    // One that was ended gets none.
    let old = certificate_of(&site, "BERT", now() - 200 * DAY);
    site.dockmaster_ok(&["node", "disable", "BERT"]);
    turned_away(&site.remote_sync(&["sync", "bert.db"]));
    assert_eq!(identity_of(&site, "BERT").certificate().to_vec(), old);
    site.stop();
}

#[test]
fn files_of_an_identity_that_others_may_read_or_that_are_damaged_are_refused_by_name() {
    let mut site = crm::running(&["ANNA"]);
    let of_node = identity_file(&site, "ANNA");
    let whole = fs::read_to_string(&of_node).unwrap();
    fs::set_permissions(&of_node, fs::Permissions::from_mode(0o644)).unwrap();
    let output = site.remote_sync(&["sync", "anna.db"]);
    assert!(complaint(&output).0.contains("node.pem") && complaint(&output).1.contains("chmod 600"), "{:?}", complaint(&output));
    fs::set_permissions(&of_node, fs::Permissions::from_mode(0o600)).unwrap();
    for damaged in ["", &whole[..whole.len() / 2], &whole.replace("CERTIFICATE", "PRIVATE KEY"), &whole.replacen('M', "N", 3)] {
        fs::write(&of_node, damaged).unwrap();
        let output = site.remote_sync(&["sync", "anna.db"]);
        assert_eq!(output.status.code(), Some(2), "{damaged}");
        let (error, hint) = complaint(&output);
        assert!(error.contains("node.pem") && hint.contains("node token"), "{error} {hint}");
    }
    fs::write(&of_node, &whole).unwrap();
    site.remote_sync_ok(&["sync", "anna.db"]);
    fs::remove_file(&of_node).unwrap();
    let output = site.remote_sync(&["sync", "anna.db"]);
    assert!(complaint(&output).0.contains("never let in") && complaint(&output).1.contains("--token"), "{:?}", complaint(&output));
    site.stop();

    let of_server = site.path("identity/authority.pem");
    let whole = fs::read_to_string(&of_server).unwrap();
    let refused = |what: &str| {
        let output = site.dockmaster(&["serve"]);
        let (error, hint) = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("authority.pem") && error.contains(what), "{error} {hint}");
        hint
    };
    fs::set_permissions(&of_server, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refused("").contains("chmod 600"));
    fs::set_permissions(&of_server, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&of_server, &whole[..100]).unwrap();
    assert!(refused("").contains("backup"));
    fs::write(&of_server, Authority::generate().unwrap().to_text()).unwrap();
    assert!(refused("another identity").contains("--new-identity"));
    fs::remove_file(&of_server).unwrap();
    assert!(refused("nodes know this server by it").contains("--new-identity"));
    let deployed = site.dockmaster(&["deploy", "--yes"]);
    assert_eq!(deployed.status.code(), Some(2), "it is not made anew by itself: {:?}", complaint(&deployed));
}

/// As systemd hands it over: in a folder of its own, for the owner to read.
#[test]
fn the_identity_may_be_a_credential_of_systemd() {
    let mut site = crm::running(&["ANNA"]);
    site.stop();
    let handed = site.path("credentials");
    fs::create_dir(&handed).unwrap();
    fs::rename(site.path("identity/authority.pem"), handed.join("authority.pem")).unwrap();
    fs::set_permissions(handed.join("authority.pem"), fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(site.dockmaster(&["serve"]).status.code(), Some(2), "it is not where it was");
    let mut serve = site.command(Program::Dockmaster, &["serve"]);
    serve.env("CREDENTIALS_DIRECTORY", &handed);
    let address = crm::serve_again_as(&mut site, serve);
    // Who gives out tokens needs no credential.
    site.remote_sync_ok(&["init", &address, "--token", &site.token("BERT"), "bert.db"]);
    in_step(&site, &["ANNA", "BERT"]);
    site.stop();
}

#[test]
fn a_new_identity_is_known_to_nobody_until_each_node_has_a_new_token() {
    let mut site = crm::running(&["ANNA"]);
    sql(&site, "UPDATE opportunity SET name = 'before' WHERE id <= 20");
    site.stop();
    let former = authority(&site).fingerprint();
    let without_yes = site.dockmaster(&["deploy", "--new-identity"]);
    assert_eq!(without_yes.status.code(), Some(2), "it is asked first");
    assert_eq!(authority(&site).fingerprint(), former);
    site.dockmaster_ok(&["deploy", "--new-identity", "--yes"]);
    assert_ne!(authority(&site).fingerprint(), former);
    crm::serve_again(&mut site);
    let output = site.remote_sync(&["sync", "anna.db"]);
    let (error, hint) = complaint(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("does not prove that it is the server of this database") && hint.contains("--new-identity"), "{error} {hint}");
    site.remote_sync_ok(&["init", site.address(), "--token", &site.token("ANNA"), "--replace", "--renew", "anna.db"]);
    in_step(&site, &["ANNA"]);
    site.stop();
}

/// A backup of the server database from before a node was let in, and from before another got a new machine.
#[test]
fn f20_nodes_that_were_let_in_after_the_backup_come_in_again_and_used_tokens_do_not() {
    let mut site = crm::running(&["ANNA", "BERT"]);
    in_step(&site, &["ANNA", "BERT"]);
    let (of_cora, for_next_bert) = (site.token("CORA"), site.token("BERT"));
    site.stop();
    let backup = site.path("backup.db");
    rusqlite::Connection::open(site.path("hq.db")).unwrap().execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    let address = crm::serve_again(&mut site);
    site.remote_sync_ok(&["init", &address, "--token", &of_cora, "cora.db"]);
    fs::rename(site.path("bert.db.sync"), site.path("stolen.db.sync")).unwrap();
    fs::rename(site.path("bert.db"), site.path("stolen.db")).unwrap();
    site.remote_sync_ok(&["init", &address, "--token", &for_next_bert, "--renew", "bert.db"]);
    in_step(&site, &["ANNA", "BERT", "CORA"]);
    site.stop();
    for suffix in ["-wal", "-shm"] {
        let _none = fs::remove_file(site.path(&format!("hq.db{suffix}")));
    }
    fs::copy(&backup, site.path("hq.db")).unwrap();
    let said = site.dockmaster_ok(&["recover", "--restored", "--yes"]);
    assert!(said.contains("node token"), "{said}");
    let address = crm::serve_again(&mut site);
    in_step(&site, &["ANNA", "BERT", "CORA"]);
    turned_away(&site.remote_sync(&["sync", "stolen.db"]));
    for (token, database) in [(&of_cora, "x.db"), (&for_next_bert, "y.db")] {
        turned_away(&site.remote_sync(&["init", &address, "--token", token, database]));
    }
    site.stop();
}

/// Secrets are searched for in everything that the programs say, at the finest level of the log.
#[test]
fn t20_no_secret_in_output_logs_status_or_arguments() {
    let mut site = crm::deployed();
    let log = fs::File::create(site.path("serve.log")).unwrap();
    let mut serve = site.command(Program::Dockmaster, &["serve"]);
    serve.env("RUST_LOG", "trace");
    let address = site.serve_logging(serve, log);
    let token = site.token("ANNA");
    fs::write(site.path("anna.token"), format!("{token}\n")).unwrap();
    let mut said = Vec::new();
    for arguments in [
        ["init", &address, "--token-file", "anna.token", "anna.db"].as_slice(),
        &["sync", "anna.db"],
        &["status", "anna.db", "--json"],
        &["init", &address, "--token-file", "anna.token", "other.db"],
    ] {
        let output = site.command(Program::RemoteSync, arguments).env("RUST_LOG", "trace").output().unwrap();
        said.extend([output.stdout, output.stderr].concat());
    }
    for arguments in [["node", "show", "ANNA"].as_slice(), &["node", "list", "--json"], &["status", "--json"], &["node", "history", "ANNA"]]
    {
        let output = site.command(Program::Dockmaster, arguments).env("RUST_LOG", "trace").output().unwrap();
        said.extend([output.stdout, output.stderr].concat());
    }
    site.stop();
    said.extend(fs::read(site.path("serve.log")).unwrap());
    let said = String::from_utf8_lossy(&said);
    assert!(said.len() > 10_000 && said.contains("was let in"), "the log was on: {}", said.len());
    let pem = |path: PathBuf| fs::read_to_string(path).unwrap().lines().nth(1).unwrap().to_owned();
    for secret in [token.as_str(), &token[4..24], &pem(identity_file(&site, "ANNA")), &pem(site.path("identity/authority.pem"))] {
        assert!(!said.contains(secret), "{secret} was said");
    }
    let database = ServerDatabase::open(site.path("hq.db")).unwrap();
    assert!(database.node_key(&"ANNA".parse().unwrap()).unwrap().key.is_some());
    for file in ["hq.db", "hq.db-wal", "docking/sessions.db", "docking/sessions.db-wal"] {
        let bytes = fs::read(site.path(file)).unwrap_or_default();
        assert!(!bytes.windows(20).any(|window| window == &token.as_bytes()[4..24]), "{file} holds a token");
    }
}
