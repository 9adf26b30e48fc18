//! P19: what a session over TLS carries, beside a bare TLS stream of the same library and settings.

use super::meter::{Better, Line, Sides};
use super::{Options, Report};
use crate::harness::Site;
use dockmaster::trust::authority::Authority;
use dockmaster::trust::identity::NodeIdentity;
use dockmaster::trust::tls;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEFINITION: &str = "version = 1\n[object.item]\nvisible.all = 'everyone'\n";
/// Bytes of one row.
const ROW: usize = 10 << 20;
/// Written and read at once on the bare stream.
const PIECE: usize = 64 << 10;

pub fn tls_session(options: &Options, report: &mut Report) {
    let size = options.size(100 << 20, 2 << 20);
    let schema = "CREATE TABLE item(id INTEGER PRIMARY KEY, body BLOB)";
    let mut site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(schema).unwrap(), DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    let read = |name: &str| std::fs::read_to_string(site.path(name)).unwrap();
    let authority = Arc::new(Authority::from_text(&read("identity/authority.pem")).unwrap());
    let identity = NodeIdentity::from_text(&read("anna.db.sync/identity/node.pem")).unwrap();
    let receive = || {
        let began = Instant::now();
        site.remote_sync_ok(&["sync", "anna.db", "--only", "receive"]);
        began.elapsed()
    };
    let ours = |_| {
        let rows: String =
            (0..size.div_ceil(ROW)).map(|_| format!("INSERT INTO item(body) VALUES(randomblob({}));", size.min(ROW))).collect();
        let server = rusqlite::Connection::open(site.path("hq.db")).unwrap();
        server.busy_timeout(Duration::from_secs(20)).unwrap();
        server.execute_batch(&format!("BEGIN; {rows} COMMIT")).unwrap();
        routed(&site);
        let before = inbox(&site);
        let whole = receive();
        assert!(inbox(&site) - before >= size as u64, "it came");
        // What a call takes that fetches nothing: two programs that meet.
        let empty = receive();
        rate(size, whole.saturating_sub(empty))
    };
    let baseline = |_| rate(size, bare(size, &authority, &identity));
    let sides = Sides::measure(options.rounds, ours, baseline);
    site.stop();
    let what = "TLS: a 100 MB file into the inbox, hashed on both sides and durable / bare TLS stream";
    report.lines.push(Line::ratio("P19", what, "MB/s", &sides, Better::Higher, 0.6, 0.8));
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-6)
}

/// Bytes in the inbox of the node.
fn inbox(site: &Site) -> u64 {
    let files = std::fs::read_dir(site.path("anna.db.sync/inbox")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// Waits until the service has routed what is committed.
fn routed(site: &Site) {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let status: serde_json::Value = serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap();
        if status["log"] == status["router"] {
            return;
        }
        assert!(Instant::now() < until, "not routed: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends bytes over a TLS stream with the same demands, and returns how long it took until the last one was read.
fn bare(size: usize, authority: &Arc<Authority>, identity: &NodeIdentity) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls::server(authority).unwrap();
    let server = std::thread::spawn(move || {
        let end = rustls::ServerConnection::new(config.into()).unwrap();
        let mut line = rustls::StreamOwned::new(end, listener.accept().unwrap().0);
        let mut asked = [0];
        line.read_exact(&mut asked).unwrap();
        let piece = vec![0xA5; PIECE];
        for _ in 0..size.div_ceil(PIECE) {
            line.write_all(&piece).unwrap();
        }
        line.flush().unwrap();
        // Until the other side is done.
        let _ended = line.read(&mut asked);
    });
    let end = rustls::ClientConnection::new(tls::node(identity, tls::SESSION).unwrap().into(), tls::server_name().unwrap()).unwrap();
    let mut line = rustls::StreamOwned::new(end, TcpStream::connect(address).unwrap());
    // The handshake is no part of it.
    line.write_all(&[1]).unwrap();
    let (began, mut left, mut piece) = (Instant::now(), size.div_ceil(PIECE) * PIECE, vec![0; PIECE]);
    while left > 0 {
        left -= line.read(&mut piece).unwrap();
    }
    let took = began.elapsed();
    drop(line);
    server.join().unwrap();
    took
}
