//! P13: small files to a place behind SFTP, 20 ms away: in letters, beside one by one.

use super::meter::{Better, Line, Sides};
use super::{Options, Report};
use crate::harness::Site;
use crate::ssh::{Sshd, user};
use bytes::Bytes;
use dockmaster::base::ids::{ByteHash, FileNo, ServerId};
use dockmaster::base::limits::LETTER_PART_BYTES;
use dockmaster::session::letter::{Receipt, Way};
use dockmaster::session::message::{Message, OfferedFile};
use dockmaster::transport::carrier::{self, Marker, PATIENCE_SECONDS, RESEND_SECONDS};
use dockmaster::transport::letters::MailBox;
use dockmaster::transport::link::Timing;
use dockmaster::transport::ssh_settings::SshSettings;
use dockmaster::trust::keys::KeyPair;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DEFINITION: &str = "version = 1\n[object.item]\nvisible.all = 'everyone'\n";
/// Bytes of a file.
const FILE: usize = 16 << 10;
/// How long bytes are on their way, each way.
const ON_ITS_WAY: Duration = Duration::from_millis(10);

pub fn small_files_behind_sftp(options: &Options, report: &mut Report) {
    let (in_letters, one_by_one) = (options.size(256, 8), options.size(64, 4));
    let site = Site::new(
        |path| rusqlite::Connection::open(path).unwrap().execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY)").unwrap(),
        DEFINITION,
    );
    let sshd = Sshd::start_for_sftp(&site, "drop");
    let port = far_away(sshd.port);
    let hosts = std::fs::read_to_string(sshd.known_hosts()).unwrap();
    std::fs::write(sshd.known_hosts(), format!("{hosts}{}", hosts.replace(&format!("]:{} ", sshd.port), &format!("]:{port} ")))).unwrap();
    let (place, second) = (site.path("drop"), site.path("one-by-one"));
    std::fs::create_dir(&second).unwrap();
    let keys = SshSettings { key: Some(sshd.key("drop")), known_hosts: Some(sshd.known_hosts()), password_file: None };
    let address = format!("sftp://{}@127.0.0.1:{port}{}", user(), place.display());
    let carrier = carrier::open(&address, &keys, Timing::default()).unwrap();
    let server = ServerId([7; 16]);
    let limits = (LETTER_PART_BYTES, 0, RESEND_SECONDS, PATIENCE_SECONDS);
    let marker = Marker {
        name: "drop".into(),
        server,
        authority: Vec::new(),
        part_bytes: limits.0,
        room_bytes: limits.1,
        resend_seconds: limits.2,
        patience_seconds: limits.3,
    };
    carrier.set_marker(&marker).unwrap();
    let (ours, theirs, node) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), "ANNA".parse().unwrap());
    let (mail_key, peer) = (&ours, theirs.public());
    let mail = MailBox { carrier: &*carrier, key: mail_key, peer, server, node: &node, writes: Way::Down, part_bytes: LETTER_PART_BYTES };
    // The folder of the node is made once.
    mail.begin(1, &Receipt::default()).unwrap().finish().unwrap();
    let content = Bytes::from(noise());
    let mut number = 1;
    let letters = |_| {
        number += 1;
        let began = Instant::now();
        let mut letter = mail.begin(number, &Receipt::default()).unwrap();
        for file in 1..=in_letters as u64 {
            let offered = OfferedFile { file: FileNo(file), bytes: FILE as u64, byte_hash: ByteHash([0; 32]) };
            letter.push(&Message::FileBegin { request: 1, file: offered, offset: 0 }).unwrap();
            letter.push(&Message::Chunk { offset: 0, bytes: content.clone() }).unwrap();
            letter.push(&Message::FileEnd { request: 1, file: FileNo(file) }).unwrap();
        }
        let bytes = letter.finish().unwrap();
        assert!(bytes as usize > in_letters * FILE);
        rate(in_letters * FILE, began.elapsed())
    };
    let session = session(port, &keys);
    let sftp = session.sftp().unwrap();
    let mut round = 0;
    let files = |_| {
        round += 1;
        let began = Instant::now();
        for file in 0..one_by_one {
            put(&sftp, &second, &format!("{round}-{file}.dx"), &content);
        }
        rate(one_by_one * FILE, began.elapsed())
    };
    let sides = Sides::measure(options.rounds, letters, files);
    assert_eq!(std::fs::read_dir(&second).unwrap().count(), round * one_by_one);
    let what = "SFTP, 20 ms away: files of 16 kB in letters, sealed and signed / one by one";
    report.lines.push(Line::ratio("P13", what, "MB/s", &sides, Better::Higher, 10.0, 15.0));
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-6)
}

/// Bytes that nothing can compress.
fn noise() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..FILE).map(|_| random.u8(..)).collect()
}

/// One file as any program would put it there: under another name first.
fn put(sftp: &ssh2::Sftp, folder: &Path, name: &str, bytes: &[u8]) {
    let tmp = folder.join(format!("{name}.tmp"));
    let mut file = sftp.create(&tmp).unwrap();
    file.write_all(bytes).unwrap();
    drop(file);
    sftp.rename(&tmp, &folder.join(name), None).unwrap();
}

fn session(port: u16, keys: &SshSettings) -> ssh2::Session {
    let mut session = ssh2::Session::new().unwrap();
    session.set_tcp_stream(TcpStream::connect(("127.0.0.1", port)).unwrap());
    session.handshake().unwrap();
    session.userauth_pubkey_file(&user(), None, keys.key.as_ref().unwrap(), None).unwrap();
    session
}

/// A port of this machine from which every byte takes its time to another one, and back.
fn far_away(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(("127.0.0.1", port))) else { return };
            for socket in [&near, &far] {
                socket.set_nodelay(true).unwrap();
            }
            slowly(near.try_clone().unwrap(), far.try_clone().unwrap());
            slowly(far, near);
        }
    });
    here
}

fn slowly(mut from: TcpStream, mut to: TcpStream) {
    let (sender, on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + ON_ITS_WAY, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, bytes) in on_the_way {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ended = to.shutdown(Shutdown::Write);
    });
}
