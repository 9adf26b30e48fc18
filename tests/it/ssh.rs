//! Sessions over SSH: a real sshd on loopback, keys of its own, forced commands (fault 27).

use crate::crm::{self, complaint, in_step, routed, server_sql};
use crate::harness::{Program, Site, interrupt};
use dockmaster::transport::ssh::GREETING;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

pub(crate) fn user() -> String {
    String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap().trim().to_owned()
}

/// An sshd of ours for one site; its files lie in the folder `ssh` of the site.
pub(crate) struct Sshd {
    folder: PathBuf,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Sshd {
    /// Starts one that knows a key for each of the nodes.
    pub(crate) fn start(site: &Site, nodes: &[&str]) -> Sshd {
        let folder = site.path("ssh");
        fs::create_dir(&folder).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut sshd = Sshd { folder, port, child: None };
        sshd.make_host_key();
        let mut authorized = String::new();
        for node in nodes {
            let key = sshd.key(node);
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", node, "-f", key.to_str().unwrap()]);
            authorized.push_str(&sshd.line(site, node));
        }
        fs::write(sshd.folder.join("authorized_keys"), authorized).unwrap();
        // As root it drops what it may before anybody is let in, and wants a folder for that.
        let _not_root = fs::create_dir_all("/run/sshd");
        sshd.up();
        fs::write(sshd.known_hosts(), sshd.scanned()).unwrap();
        sshd
    }

    /// Starts one on which one key may do SFTP and nothing else.
    pub(crate) fn start_for_sftp(site: &Site, name: &str) -> Sshd {
        let sshd = Sshd::start(site, &[]);
        let key = sshd.key(name);
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key.to_str().unwrap()]);
        let line = format!("restrict,command=\"internal-sftp\" {}", text(&key.with_extension("pub")));
        fs::write(sshd.folder.join("authorized_keys"), line).unwrap();
        sshd
    }

    fn make_host_key(&self) {
        let key = self.folder.join("host");
        for file in [key.clone(), key.with_extension("pub")] {
            let _first = fs::remove_file(file);
        }
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    }

    /// The line of authorized_keys that ties a node to its key.
    fn line(&self, site: &Site, node: &str) -> String {
        format!(
            "restrict,command=\"{} session --stdio --node {node} --config {}\" {}",
            env!("CARGO_BIN_EXE_dockmaster"),
            site.path("dockmaster.toml").display(),
            text(&self.key(node).with_extension("pub"))
        )
    }

    pub(crate) fn key(&self, node: &str) -> PathBuf {
        self.folder.join(format!("id-{node}"))
    }

    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    fn address(&self) -> String {
        format!("ssh://{}@127.0.0.1:{}", user(), self.port)
    }

    fn scanned(&self) -> Vec<u8> {
        Command::new("ssh-keyscan").args(["-p", &self.port.to_string(), "127.0.0.1"]).output().unwrap().stdout
    }

    fn up(&mut self) {
        let folder = self.folder.display();
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nSubsystem sftp internal-sftp\nMaxStartups 100\nLogLevel ERROR\n",
            self.port
        );
        let path = self.folder.join("sshd_config");
        fs::write(&path, config).unwrap();
        let program = ["/usr/sbin/sshd", "/usr/bin/sshd"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("sshd; scripts/test.sh installs it");
        self.child = Some(Command::new(program).args(["-D", "-e", "-f"]).arg(&path).stdin(Stdio::null()).spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends sshd and every session that it serves.
    fn down(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let of_it = Command::new("pkill").args(["-9", "-P", &child.id().to_string()]).status();
        assert!(of_it.is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn init(&self, site: &Site, node: &str, database: &str) -> Output {
        let (key, hosts) = (self.key(node), self.known_hosts());
        let (key, hosts) = (key.to_str().unwrap(), hosts.to_str().unwrap());
        site.remote_sync(&["init", &self.address(), "--node", node, "--ssh-key", key, "--ssh-known-hosts", hosts, database])
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.down();
    }
}

/// A running service behind sshd, and nodes that were initialised over it.
fn site_over_ssh(nodes: &[&str]) -> (Site, Sshd) {
    let mut site = crm::deployed();
    site.serve();
    let sshd = Sshd::start(&site, &["ANNA", "BERT", "CORA"]);
    for node in nodes {
        let output = sshd.init(&site, node, &crm::local(node));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    (site, sshd)
}

fn refused(output: &Output, code: i32, error: &str, hint: &str) {
    let (found, advice) = complaint(output);
    assert_eq!(output.status.code(), Some(code), "{found} {advice}");
    assert!(found.contains(error) && advice.contains(hint), "{found} | {advice}");
}

#[test]
fn sr9_nodes_synchronise_both_ways_over_ssh_and_a_key_is_one_node() {
    let (mut site, sshd) = site_over_ssh(&["ANNA", "BERT"]);
    server_sql(&site, "UPDATE opportunity SET name = 'over ssh' WHERE id <= 50");
    in_step(&site, &["ANNA", "BERT"]);
    crm::sql_on(&site.path("anna.db"), "UPDATE opportunity SET amount = 4711 WHERE id = (SELECT max(id) FROM opportunity)");
    let said = site.remote_sync_ok(&["sync", "anna.db", "--wait", "30"]);
    assert!(said.contains("1 merged"), "{said}");
    in_step(&site, &["ANNA", "BERT"]);
    assert!(!site.path("anna.db.sync/identity/node.pem").exists(), "the key of SSH is the one that counts");
    // BERT's key does not open ANNA's database to anybody, nor the other way round (T4).
    let config = site.path("anna.db.sync/remote-sync.toml");
    let own = text(&config);
    fs::write(&config, own.replace("id-ANNA", "id-BERT")).unwrap();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "unknown, disabled or wrong node", "dockmaster node show");
    fs::write(&config, own).unwrap();
    let history = site.dockmaster_ok(&["node", "show", "ANNA"]);
    assert!(history.contains("127.0.0.1"), "where it called from: {history}");
    drop(sshd);
    site.stop();
}

#[test]
fn fault27_a_host_that_is_not_known_or_not_the_same_stops_everything_with_the_command_that_inspects_it() {
    let (mut site, mut sshd) = site_over_ssh(&["ANNA"]);
    let known = text(&sshd.known_hosts());
    fs::write(sshd.known_hosts(), "").unwrap();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "is not in", "ssh-keyscan -p");
    refused(&sshd.init(&site, "BERT", "bert.db"), 2, "(it shows SHA256:", "ask the server's administrator");
    assert_eq!(text(&sshd.known_hosts()), "", "nothing is added by itself");
    fs::write(sshd.known_hosts(), &known).unwrap();
    site.remote_sync_ok(&["sync", "anna.db"]);
    sshd.down();
    refused(&site.remote_sync(&["sync", "anna.db", "--quiet"]), 3, "connect to ssh://", "");
    sshd.make_host_key();
    sshd.up();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "this may be another machine", "ssh-keygen -l -F");
    fs::write(sshd.known_hosts(), sshd.scanned()).unwrap();
    in_step(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn a_key_that_is_not_taken_a_key_that_others_may_read_and_a_far_side_that_fails_are_told_apart() {
    let (mut site, sshd) = site_over_ssh(&["ANNA"]);
    let (authorized, key) = (sshd.folder.join("authorized_keys"), sshd.key("ANNA"));
    let lines = text(&authorized);
    fs::write(&authorized, lines.replace("ssh-ed25519 ", "ssh-ed25519 X")).unwrap();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "does not take the key", "authorized_keys");
    fs::write(&authorized, &lines).unwrap();
    let mode = |mode| fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o644);
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "id-ANNA", "chmod 600");
    mode(0o600);
    fs::write(&authorized, lines.replace("session --stdio", "status --nonsense")).unwrap();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "opened no session", "dockmaster session --help");
    // What another program says is not taken for a session.
    fs::write(&authorized, lines.replace(env!("CARGO_BIN_EXE_dockmaster"), "echo welcome to this machine #")).unwrap();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "it says `welcome", "dockmaster session --help");
    fs::write(&authorized, &lines).unwrap();
    site.stop();
    refused(&site.remote_sync(&["sync", "anna.db", "--quiet"]), 3, "opened no session", "dockmaster serve");
    site.serve();
    in_step(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn fault27_sshd_that_is_killed_and_started_again_costs_nothing_but_the_way_back() {
    let (mut site, mut sshd) = site_over_ssh(&["ANNA"]);
    let watching = site.remote_sync_started(&["watch", "anna.db"]);
    for turn in 0..3 {
        server_sql(&site, &format!("UPDATE opportunity SET name = 'turn {turn}', position_id = 4 + (id + {turn}) % 3"));
        sshd.down();
        routed(&site);
        server_sql(&site, &format!("UPDATE opportunity SET amount = {turn} WHERE id % 3 = 0"));
        routed(&site);
        sshd.up();
        let until = Instant::now() + Duration::from_secs(30);
        while !crm::differences(&site, "anna.db", 4).is_empty() {
            assert!(Instant::now() < until, "turn {turn}: {}", crm::differences(&site, "anna.db", 4));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    interrupt(watching);
    in_step(&site, &["ANNA"]);
    site.stop();
}

/// The line of a node is cut while much of what it sent waits on its way to the service. We are sshd and the service here, so that it does
/// wait: `session --stdio` is the real one.
#[test]
fn fault23_what_a_node_had_sent_reaches_the_service_when_nobody_hears_the_answers_any_more() {
    // More than the socket and the pipe take together.
    const BYTES: usize = 1 << 20;
    let site = crm::deployed();
    let door = UnixListener::bind(site.path("docking/door")).unwrap();
    let mut relay = site.command(Program::Dockmaster, &["session", "--stdio", "--node", "ANNA"]);
    let mut relay = relay.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut service, _) = door.accept().unwrap();
    relay.stdout.as_mut().unwrap().read_exact(&mut [0; GREETING.len()]).unwrap();
    let mut input = relay.stdin.take().unwrap();
    let node = std::thread::spawn(move || input.write_all(&[7; BYTES]));
    drop(relay.stdout.take());
    service.write_all(&[9; BYTES]).expect("it hears the service to its end");
    let mut came = Vec::new();
    service.read_to_end(&mut came).unwrap();
    assert!(node.join().unwrap().is_ok(), "it took everything that the node had sent");
    assert_eq!(came.iter().filter(|byte| **byte == 7).count(), BYTES);
    drop(service);
    assert!(relay.wait().unwrap().success());
}

#[test]
fn sr11_a_node_that_is_disabled_is_cut_off_over_ssh_too() {
    let (mut site, _sshd) = site_over_ssh(&["ANNA"]);
    let mut watching = site.remote_sync_started(&["watch", "anna.db"]);
    crm::watching(&site);
    site.dockmaster_ok(&["node", "disable", "ANNA"]);
    let ended = crm::cut_off(&mut watching);
    assert_eq!(ended.code(), Some(2));
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "unknown, disabled or wrong node", "dockmaster node show");
    site.stop();
}

#[test]
fn keys_come_from_an_agent_and_from_files_with_a_password_too() {
    let (mut site, sshd) = site_over_ssh(&["ANNA"]);
    let config = site.path("anna.db.sync/remote-sync.toml");
    let with_key = text(&config);
    let without: String = with_key.lines().filter(|line| !line.starts_with("ssh_key")).map(|line| format!("{line}\n")).collect();
    let agent = sshd.folder.join("agent");
    let mut running = Command::new("ssh-agent").args(["-D", "-a"]).arg(&agent).stdout(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !agent.exists() {
        assert!(Instant::now() < until, "the agent listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    let by_agent = || {
        let mut sync = site.command(crate::harness::Program::RemoteSync, &["sync", "anna.db"]);
        sync.env("SSH_AUTH_SOCK", &agent).output().unwrap()
    };
    fs::write(&config, &without).unwrap();
    refused(&by_agent(), 2, "does not take a key of the agent", "authorized_keys");
    let added = Command::new("ssh-add").arg(sshd.key("ANNA")).env("SSH_AUTH_SOCK", &agent).output().unwrap();
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let output = by_agent();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    running.kill().unwrap();
    running.wait().unwrap();
    // A key with a password, which stands in a file of mode 0600.
    run("ssh-keygen", &["-q", "-p", "-P", "", "-N", "open sesame", "-f", sshd.key("ANNA").to_str().unwrap()]);
    fs::write(&config, &with_key).unwrap();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "does not take the key", "");
    let password = site.path("ssh/password");
    fs::write(&password, "open sesame\n").unwrap();
    fs::write(&config, format!("{with_key}ssh_password_file = \"{}\"\n", password.display())).unwrap();
    refused(&site.remote_sync(&["sync", "anna.db"]), 2, "password", "chmod 600");
    fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    site.remote_sync_ok(&["sync", "anna.db"]);
    crm::equal(&site, &["ANNA"]);
    site.stop();
}

/// A socket's path has about 100 bytes; a docking root that lies deeper has no door, and everything else goes on.
#[test]
fn a_docking_root_with_a_long_path_serves_over_tls_and_says_that_it_has_no_door() {
    let mut site = crm::deployed();
    let deep = "a-folder-with-a-long-name/".repeat(6) + "docking";
    fs::create_dir_all(site.path(&deep).parent().unwrap()).unwrap();
    fs::rename(site.path("docking"), site.path(&deep)).unwrap();
    let definition = fs::read_to_string(site.path("dockmaster.toml")).unwrap();
    fs::write(site.path("dockmaster.toml"), format!("{definition}root = \"{deep}\"\n")).unwrap();
    let serve = site.command(Program::Dockmaster, &["serve"]);
    let address = site.serve_logging(serve, fs::File::create(site.path("serve.log")).unwrap());
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    in_step(&site, &["ANNA"]);
    let refused_here = site.dockmaster(&["session", "--stdio", "--node", "ANNA"]);
    refused(&refused_here, 3, "no service behind", "dockmaster serve");
    site.stop();
    assert!(text(&site.path("serve.log")).contains("nodes cannot come in over SSH"));
}
