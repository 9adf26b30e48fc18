//! Upload files made by hand, and a node that sends them.

use super::support::{Client, SERVER_ID, Server, byte_hash, name, noise};
use dockmaster::base::ids::*;
use dockmaster::client::applier::{BoxError, Fates, Outgoing, Uploads};
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::upload_writer::UploadWriter;
use dockmaster::model::event::TableHeading;
use dockmaster::model::upload::{RowChange, UploadHead, UploadUnit};
use dockmaster::model::value::Value;
use dockmaster::session::upload::{UploadFile, UploadState};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub(super) const INSTALL: InstallId = InstallId([1; 16]);

/// One file with its bytes.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) file: UploadFile,
    pub(super) bytes: Vec<u8>,
}

/// What a file is made of; everything may be wrong.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) header: Header,
    pub(super) length: usize,
    pub(super) seed: u64,
}

pub(super) fn recipe(node: &str, number: u64, previous: ContentHash) -> Recipe {
    let unit = TxnId(i64::try_from(number).unwrap());
    let header = Header {
        direction: DxDirection::Upload,
        server_id: SERVER_ID,
        epoch: Epoch(1),
        node: Some(name(node)),
        incarnation: Incarnation(1),
        file_no: FileNo(number),
        first: unit,
        last: unit,
        revision: Revision(3),
        previous,
        install_id: INSTALL,
        applied_unit: TxnId(0),
    };
    Recipe { header, length: 300, seed: number }
}

pub(super) fn make(recipe: &Recipe) -> Made {
    let header = &recipe.header;
    let number = UnitNo(header.first.0.unsigned_abs());
    let heading = Arc::new(TableHeading { name: "note".into(), columns: vec!["id".into(), "body".into()], key: vec![0] });
    let row = vec![Value::Integer(header.first.0), Value::Blob(noise(recipe.seed, recipe.length))];
    let head =
        UploadHead { number, applied: TxnId(0), revision: Revision(3), cut_at_micros: 0, label: None, hidden: Vec::new(), changes: 1 };
    let unit = UploadUnit { head, changes: vec![(heading, RowChange::Insert { row })] };
    let (bytes, summary) = UploadWriter::assemble(header, &[unit], 3).unwrap();
    let file = UploadFile {
        file: header.file_no,
        bytes: bytes.len() as u64,
        byte_hash: byte_hash(&bytes),
        content_hash: summary.content_hash,
        first: number,
        last: number,
    };
    Made { file, bytes }
}

/// A chain of files of one node.
pub(super) fn chain(node: &str, lengths: &[usize]) -> Vec<Made> {
    let mut previous = ContentHash::default();
    let mut files = Vec::new();
    for (number, length) in (1..).zip(lengths) {
        let made = make(&Recipe { length: *length, ..recipe(node, number, previous) });
        previous = made.file.content_hash;
        files.push(made);
    }
    files
}

/// Sends files as they are; one that is lost or damaged on disk is written again.
pub(super) struct Hand {
    pub(super) folder: PathBuf,
    pub(super) files: Vec<Made>,
    pub(super) agreed: Vec<UploadState>,
    pub(super) stored: FileNo,
    pub(super) cuts: u64,
    pub(super) made_again: u64,
    /// Files that `cut` adds, one at a time.
    pub(super) to_come: Vec<Made>,
}

impl Hand {
    fn write(&self, made: &Made) -> PathBuf {
        let path = self.folder.join(made.file.file.file_name());
        fs::write(&path, &made.bytes).unwrap();
        path
    }
}

impl Uploads for Hand {
    fn cut(&mut self) -> Result<u64, BoxError> {
        self.cuts += 1;
        if self.to_come.is_empty() {
            return Ok(0);
        }
        let made = self.to_come.remove(0);
        self.write(&made);
        self.files.push(made);
        Ok(1)
    }

    fn agree(&mut self, known: &UploadState) -> Result<Option<String>, BoxError> {
        self.agreed.push(known.clone());
        // The answer to the last file may have been lost with the line.
        self.stored = self.stored.max(known.stored);
        Ok(None)
    }

    fn next(&mut self, after: FileNo) -> Result<Option<Outgoing>, BoxError> {
        let Some(made) = self.files.iter().find(|made| made.file.file == after.next()).cloned() else { return Ok(None) };
        let path = self.folder.join(made.file.file.file_name());
        if fs::read(&path).ok().as_ref() != Some(&made.bytes) {
            self.made_again += 1;
            self.write(&made);
        }
        Ok(Some(Outgoing { file: made.file, units: 1, path }))
    }

    fn stored(&mut self, file: FileNo) -> Result<(), BoxError> {
        self.stored = self.stored.max(file);
        Ok(())
    }

    fn fates(&mut self, _: &[(UnitNo, UnitNo)]) -> Result<Fates, BoxError> {
        Ok(Fates::default())
    }

    fn purge(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Returns a client that has these files to send.
pub(super) fn sender(node: &str, address: std::net::SocketAddr, files: &[Made]) -> (Client, Arc<Mutex<Hand>>) {
    let client = Client::new(node, address);
    let hand = Hand {
        folder: client.folder.outbox(),
        files: files.to_vec(),
        agreed: Vec::new(),
        stored: FileNo(0),
        cuts: 0,
        made_again: 0,
        to_come: Vec::new(),
    };
    for made in files {
        hand.write(made);
    }
    let hand = Arc::new(Mutex::new(hand));
    client.keeper.lock().unwrap().uploads = Some(hand.clone());
    (client, hand)
}

impl Server {
    pub(super) fn inbox(&self, node: &str) -> PathBuf {
        self.root().join(node).join("inbox")
    }

    /// Returns what lies in a node's inbox, by name.
    pub(super) fn stored(&self, node: &str) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(self.inbox(node))
            .map(|entries| {
                entries
                    .map(|entry| entry.unwrap().path())
                    .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
                    .collect()
            })
            .unwrap_or_default();
        files.sort();
        files
    }

    pub(super) fn expect_stored(&self, node: &str, files: &[Made], what: &str) {
        let expected: Vec<(String, Vec<u8>)> = files.iter().map(|made| (made.file.file.file_name(), made.bytes.clone())).collect();
        assert!(
            self.stored(node) == expected,
            "{what}: the inbox holds {:?}",
            self.stored(node).iter().map(|(name, _)| name).collect::<Vec<_>>()
        );
    }

    /// Files in the node's folder `tmp`.
    pub(super) fn parts(&self, node: &str) -> usize {
        fs::read_dir(self.root().join(node).join("tmp")).map(Iterator::count).unwrap_or_default()
    }
}
