//! Which files nodes have sent, in `sessions.db`: one row for each file that lies durable in an inbox, or did until it was merged.
//!
//! The files prove themselves, so losing the table loses nothing: what lies in an inbox without a row is read and gets one. The rows
//! tell a file that comes twice from another one under its number, and the units that a restored node must not number again.

use crate::base::ids::{ByteHash, ContentHash, FileNo, Incarnation, InstallId, NodeName, UnitNo};
use crate::docking::sessions::{SessionsDb, SessionsError};
use rusqlite::{OptionalExtension, Row, params};

/// Tables of this file.
pub(super) const LAYOUT: &str = "
CREATE TABLE upload(
    node TEXT NOT NULL, incarnation INTEGER NOT NULL, file_no INTEGER NOT NULL, install_id BLOB NOT NULL, content_hash BLOB NOT NULL,
    byte_hash BLOB NOT NULL, bytes INTEGER NOT NULL, first_unit INTEGER NOT NULL, last_unit INTEGER NOT NULL, stored_at INTEGER NOT NULL,
    PRIMARY KEY(node, incarnation, file_no)) WITHOUT ROWID;
CREATE INDEX upload_install ON upload(install_id, last_unit);
";

/// A file that a node has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// The node.
    pub node: NodeName,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Number of the file.
    pub file: FileNo,
    /// The local database that made it.
    pub install_id: InstallId,
    /// Its content hash.
    pub content_hash: ContentHash,
    /// SHA-256 of its bytes.
    pub byte_hash: ByteHash,
    /// Its length.
    pub bytes: u64,
    /// First unit in it.
    pub first: UnitNo,
    /// Last unit in it.
    pub last: UnitNo,
    /// When it was stored, seconds since 1970 (for people).
    pub stored_at: i64,
}

impl SessionsDb {
    /// Notes that a file lies durable in the inbox. Said twice it is noted once.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn note_upload(&self, file: &Uploaded) -> Result<(), SessionsError> {
        let sql = "INSERT OR REPLACE INTO upload(node, incarnation, file_no, install_id, content_hash, byte_hash, bytes, first_unit,
                   last_unit, stored_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        self.connection()
            .prepare_cached(sql)
            .and_then(|mut statement| {
                statement.execute(params![
                    file.node.as_str(),
                    file.incarnation.0,
                    signed(file.file.0),
                    file.install_id.0,
                    file.content_hash.0,
                    file.byte_hash.0,
                    signed(file.bytes),
                    signed(file.first.0),
                    signed(file.last.0),
                    file.stored_at
                ])
            })
            .map(drop)
            .map_err(|source| self.error("write an upload to", source))
    }

    /// Returns what is known of a file; `None` if it never came, or long ago.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn upload(&self, node: &NodeName, incarnation: Incarnation, file: FileNo) -> Result<Option<Uploaded>, SessionsError> {
        let sql = "SELECT install_id, content_hash, byte_hash, bytes, first_unit, last_unit, stored_at FROM upload
                   WHERE node = ?1 AND incarnation = ?2 AND file_no = ?3";
        let read = |row: &Row<'_>| {
            Ok(Uploaded {
                node: node.clone(),
                incarnation,
                file,
                install_id: InstallId(row.get(0)?),
                content_hash: ContentHash(row.get(1)?),
                byte_hash: ByteHash(row.get(2)?),
                bytes: row.get::<_, i64>(3)?.unsigned_abs(),
                first: UnitNo(row.get::<_, i64>(4)?.unsigned_abs()),
                last: UnitNo(row.get::<_, i64>(5)?.unsigned_abs()),
                stored_at: row.get(6)?,
            })
        };
        self.connection()
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(params![node.as_str(), incarnation.0, signed(file.0)], read).optional())
            .map_err(|source| self.error("read an upload of", source))
    }

    /// Returns the highest unit that ever came from a local database; 0 = none.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn last_upload_unit(&self, install: InstallId) -> Result<UnitNo, SessionsError> {
        let sql = "SELECT ifnull(max(last_unit), 0) FROM upload WHERE install_id = ?1";
        let last: Result<i64, _> =
            self.connection().prepare_cached(sql).and_then(|mut statement| statement.query_row([install.0], |row| row.get(0)));
        last.map(|last| UnitNo(last.unsigned_abs())).map_err(|source| self.error("read uploads of", source))
    }

    /// Forgets the files of a node up to one that is merged for long, but never the one with the highest unit.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn forget_uploads(&self, node: &NodeName, incarnation: Incarnation, upto: FileNo) -> Result<(), SessionsError> {
        let sql = "DELETE FROM upload WHERE node = ?1 AND incarnation = ?2 AND file_no <= ?3
                   AND EXISTS (SELECT 1 FROM upload AS later WHERE later.install_id = upload.install_id AND later.last_unit > upload.last_unit)";
        self.connection()
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params![node.as_str(), incarnation.0, signed(upto.0)]))
            .map(drop)
            .map_err(|source| self.error("purge uploads of", source))
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: u64, last: u64) -> Uploaded {
        Uploaded {
            node: "SHOP-01".parse().unwrap(),
            incarnation: Incarnation(2),
            file: FileNo(number),
            install_id: InstallId([7; 16]),
            content_hash: ContentHash([number as u8; 32]),
            byte_hash: ByteHash([1; 32]),
            bytes: 10,
            first: UnitNo(last),
            last: UnitNo(last),
            stored_at: 5,
        }
    }

    #[test]
    fn what_came_is_known_and_forgetting_keeps_the_highest_unit() {
        let folder = tempfile::tempdir().unwrap();
        let database = SessionsDb::open(&folder.path().join("sessions.db")).unwrap();
        let (node, incarnation, install) = (file(1, 1).node, Incarnation(2), InstallId([7; 16]));
        assert_eq!(database.last_upload_unit(install).unwrap(), UnitNo(0));
        for number in 1..=3 {
            database.note_upload(&file(number, number * 4)).unwrap();
        }
        assert_eq!(database.upload(&node, incarnation, FileNo(2)).unwrap(), Some(file(2, 8)));
        assert_eq!(database.upload(&node, Incarnation(1), FileNo(2)).unwrap(), None);
        database.forget_uploads(&node, incarnation, FileNo(3)).unwrap();
        assert_eq!(database.upload(&node, incarnation, FileNo(2)).unwrap(), None);
        assert_eq!(database.last_upload_unit(install).unwrap(), UnitNo(12));
    }

    #[test]
    fn a_file_of_the_former_layout_gets_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions.db");
        SessionsDb::open(&path).unwrap();
        let plain = rusqlite::Connection::open(&path).unwrap();
        plain.execute_batch("DROP TABLE upload; DROP TABLE node_key; DROP TABLE token; PRAGMA user_version = 2").unwrap();
        drop(plain);
        assert!(SessionsDb::open_to_read(&path).unwrap().is_none());
        SessionsDb::open(&path).unwrap().note_upload(&file(1, 1)).unwrap();
        assert!(SessionsDb::open_to_read(&path).unwrap().is_some());
    }
}
