//! Upload files of a local database, as `dock_upload` knows them: which units are in which, and how they are chained.
//!
//! **Order**: a file is durable before its row is written, and only files with a row are sent. So a file without a row was never sent and
//! may be written over; one with a row is made again from its units, with the same content.

use super::local::{LocalDatabase, LocalError, LocalState};
use crate::base::ids::{ByteHash, ContentHash, Epoch, FileNo, TxnId, UnitNo};
use crate::dx::header::{DxDirection, Header};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::str::FromStr;

/// An upload file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadRow {
    /// Its number.
    pub file: FileNo,
    /// First unit in it; 0 in the row that only says where the chain goes on.
    pub first: UnitNo,
    /// Last unit in it.
    pub last: UnitNo,
    /// What was applied when it was made.
    pub applied: TxnId,
    /// The server's epoch then.
    pub epoch: Epoch,
    /// Its content hash.
    pub content_hash: ContentHash,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes; `None` in the row that only says where the chain goes on.
    pub byte_hash: Option<ByteHash>,
    /// Whether the server has it durable.
    pub stored: bool,
}

/// What an upload file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPlan {
    /// Its header.
    pub header: Header,
    /// Its units, in order.
    pub units: Vec<UnitNo>,
}

/// Hashes and length of a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenUpload {
    /// Its content hash.
    pub content_hash: ContentHash,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub byte_hash: ByteHash,
}

const COLUMNS: &str = "file_no, first_unit, last_unit, applied, epoch, content_hash, bytes, byte_hash, stored";

impl LocalDatabase {
    fn upload_sql(&self, source: rusqlite::Error) -> LocalError {
        LocalError::of_sql(self.path(), "read or write dock_upload", source)
    }

    /// Returns the first upload file after a number that the server does not have, and that holds units.
    ///
    /// # Errors
    /// A statement failed, or a row of ours is damaged.
    pub fn next_made_upload(&self, after: FileNo) -> Result<Option<UploadRow>, LocalError> {
        self.upload_row("file_no > ?1 AND stored = 0 AND first_unit > 0 ORDER BY file_no LIMIT 1", after)
    }

    /// Returns an upload file.
    ///
    /// # Errors
    /// As [`LocalDatabase::next_made_upload`].
    pub fn upload(&self, file: FileNo) -> Result<Option<UploadRow>, LocalError> {
        self.upload_row("file_no = ?1", file)
    }

    /// Returns the last upload file up to a number.
    ///
    /// # Errors
    /// As [`LocalDatabase::next_made_upload`].
    pub fn last_upload(&self, upto: FileNo) -> Result<Option<UploadRow>, LocalError> {
        self.upload_row("file_no <= ?1 ORDER BY file_no DESC LIMIT 1", upto)
    }

    /// Returns the number of the last file that the server is known to have; 0 = none.
    ///
    /// # Errors
    /// As [`LocalDatabase::next_made_upload`].
    pub fn last_stored_upload(&self) -> Result<FileNo, LocalError> {
        Ok(self
            .upload_row("file_no <= ?1 AND stored = 1 ORDER BY file_no DESC LIMIT 1", FileNo(u64::MAX))?
            .map_or(FileNo(0), |row| row.file))
    }

    fn upload_row(&self, condition: &str, file: FileNo) -> Result<Option<UploadRow>, LocalError> {
        let number = i64::try_from(file.0).unwrap_or(i64::MAX);
        let read = self
            .connection()
            .prepare_cached(&format!("SELECT {COLUMNS} FROM main.dock_upload WHERE {condition}"))
            .and_then(|mut statement| {
                statement
                    .query_row([number], |row| {
                        let unsigned = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
                        let hashes: (String, String) = (row.get(5)?, row.get(7)?);
                        let row = UploadRow {
                            file: FileNo(unsigned(0)?),
                            first: UnitNo(unsigned(1)?),
                            last: UnitNo(unsigned(2)?),
                            applied: TxnId(row.get(3)?),
                            epoch: Epoch(row.get(4)?),
                            content_hash: ContentHash::default(),
                            bytes: unsigned(6)?,
                            byte_hash: None,
                            stored: row.get(8)?,
                        };
                        Ok((row, hashes))
                    })
                    .optional()
            })
            .map_err(|source| self.upload_sql(source))?;
        let Some((row, (content, bytes))) = read else { return Ok(None) };
        let damaged = |value: &String| LocalError::State { path: self.path().to_owned(), column: "dock_upload", value: value.clone() };
        let content_hash = ContentHash::from_str(&content).map_err(|_| damaged(&content))?;
        let byte_hash = if bytes.is_empty() { None } else { Some(ByteHash::from_str(&bytes).map_err(|_| damaged(&bytes))?) };
        Ok(Some(UploadRow { content_hash, byte_hash, ..row }))
    }

    /// Returns what the next file is made of: whole units that are in no file yet, up to about so many bytes of changes but at least one.
    /// `None` if there are none.
    ///
    /// # Errors
    /// As [`LocalDatabase::next_made_upload`].
    pub fn next_upload(&self, bytes_goal: u64) -> Result<Option<UploadPlan>, LocalError> {
        let mut statement = self
            .connection()
            .prepare_cached(
                "SELECT u.unit, ifnull((SELECT sum(length(c.body)) FROM main.dock_change AS c WHERE c.unit = u.unit), 0)
                 FROM main.dock_unit AS u WHERE u.file_no IS NULL ORDER BY u.unit",
            )
            .map_err(|source| self.upload_sql(source))?;
        let mut rows = statement.query([]).map_err(|source| self.upload_sql(source))?;
        let (mut units, mut bytes) = (Vec::new(), 0u64);
        while let Some(row) = rows.next().map_err(|source| self.upload_sql(source))? {
            let read = || -> rusqlite::Result<(i64, i64)> { Ok((row.get(0)?, row.get(1)?)) };
            let (unit, length) = read().map_err(|source| self.upload_sql(source))?;
            bytes += length.cast_unsigned();
            if !units.is_empty() && bytes > bytes_goal {
                break;
            }
            units.push(UnitNo(unit.cast_unsigned()));
        }
        let (Some(first), Some(last)) = (units.first().copied(), units.last().copied()) else { return Ok(None) };
        let state = self.state()?;
        let previous = self.last_upload(FileNo(u64::MAX))?;
        let row = UploadRow {
            file: previous.map_or(FileNo(1), |previous| previous.file.next()),
            first,
            last,
            applied: state.applied_unit,
            epoch: state.epoch,
            content_hash: ContentHash::default(),
            bytes: 0,
            byte_hash: None,
            stored: false,
        };
        let previous = previous.map(|previous| previous.content_hash).unwrap_or_default();
        Ok(Some(UploadPlan { header: self.header(&state, &row, previous)?, units }))
    }

    /// Returns what a file was made of, to make it again; `None` if units of it are finished, so that nobody needs it any more.
    ///
    /// # Errors
    /// As [`LocalDatabase::next_made_upload`].
    pub fn upload_again(&self, row: &UploadRow) -> Result<Option<UploadPlan>, LocalError> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT unit FROM main.dock_unit WHERE file_no = ?1 ORDER BY unit")
            .map_err(|source| self.upload_sql(source))?;
        let units: Vec<UnitNo> = statement
            .query_map([row.file.0.cast_signed()], |row| row.get::<_, i64>(0).map(|unit| UnitNo(unit.cast_unsigned())))
            .and_then(Iterator::collect)
            .map_err(|source| self.upload_sql(source))?;
        if units.first() != Some(&row.first) || units.last() != Some(&row.last) {
            return Ok(None);
        }
        let previous = match row.file.0 {
            0 | 1 => None,
            number => self.last_upload(FileNo(number - 1))?,
        };
        let previous = previous.map(|previous| previous.content_hash).unwrap_or_default();
        Ok(Some(UploadPlan { header: self.header(&self.state()?, row, previous)?, units }))
    }

    fn header(&self, state: &LocalState, row: &UploadRow, previous: ContentHash) -> Result<Header, LocalError> {
        let revision = super::local_units::read_heads(self.connection(), self.path(), &format!("unit = {}", row.last.0))?;
        Ok(Header {
            direction: DxDirection::Upload,
            server_id: state.server_id,
            epoch: row.epoch,
            node: Some(state.node.clone()),
            incarnation: state.incarnation,
            file_no: row.file,
            first: TxnId(row.first.0.cast_signed()),
            last: TxnId(row.last.0.cast_signed()),
            revision: revision.first().map_or(state.revision, |unit| unit.head.revision),
            previous,
            install_id: state.install_id.unwrap_or_default(),
            applied_unit: row.applied,
        })
    }

    /// Notes a file that is durable, and that its units are in it.
    ///
    /// # Errors
    /// A statement failed.
    pub fn store_upload(&self, plan: &UploadPlan, written: &WrittenUpload) -> Result<(), LocalError> {
        let sql = |source| self.upload_sql(source);
        let transaction = Transaction::new_unchecked(self.connection(), TransactionBehavior::Immediate).map_err(sql)?;
        let header = &plan.header;
        let file = header.file_no.0.cast_signed();
        transaction.execute("DELETE FROM main.dock_upload WHERE file_no = ?1", [file]).map_err(sql)?;
        transaction
            .execute(
                &format!("INSERT INTO main.dock_upload({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0)"),
                (
                    file,
                    header.first.0,
                    header.last.0,
                    header.applied_unit.0,
                    header.epoch.0,
                    written.content_hash.to_string(),
                    written.bytes.cast_signed(),
                    written.byte_hash.to_string(),
                ),
            )
            .map_err(sql)?;
        for unit in &plan.units {
            let numbers = (unit.0.cast_signed(), file);
            transaction.execute("UPDATE main.dock_unit SET file_no = ?2, offered = 1 WHERE unit = ?1", numbers).map_err(sql)?;
        }
        transaction.commit().map_err(sql)
    }

    /// Notes that the server has all files to this one durable.
    ///
    /// # Errors
    /// A statement failed.
    pub fn mark_stored(&self, upto: FileNo) -> Result<(), LocalError> {
        let sql = |source| self.upload_sql(source);
        let file = i64::try_from(upto.0).unwrap_or(i64::MAX);
        let transaction = Transaction::new_unchecked(self.connection(), TransactionBehavior::Immediate).map_err(sql)?;
        transaction.execute("UPDATE main.dock_upload SET stored = 1 WHERE file_no <= ?1 AND stored = 0", [file]).map_err(sql)?;
        transaction.execute("UPDATE main.dock_unit SET state = 'sent' WHERE file_no <= ?1 AND state = 'pending'", [file]).map_err(sql)?;
        transaction.commit().map_err(sql)
    }

    /// Lets the chain go on behind a file that the server has: what we know of later files, or of another one under that number, goes, and
    /// their units go into new files. Numbers of units go on above `last_unit`.
    ///
    /// # Errors
    /// A statement failed.
    pub fn continue_uploads(&self, stored: FileNo, hash: ContentHash, last_unit: UnitNo) -> Result<(), LocalError> {
        let sql = |source| self.upload_sql(source);
        let known = self.upload(stored)?.is_some_and(|row| row.content_hash == hash);
        let transaction = Transaction::new_unchecked(self.connection(), TransactionBehavior::Immediate).map_err(sql)?;
        let file = i64::try_from(stored.0).unwrap_or(i64::MAX);
        if known {
            transaction.execute("DELETE FROM main.dock_upload WHERE file_no > ?1", [file]).map_err(sql)?;
            unfile(&transaction, file).map_err(sql)?;
        } else {
            renumber_uploads(&transaction).map_err(sql)?;
            if stored.0 > 0 {
                transaction
                    .execute(
                        &format!("INSERT INTO main.dock_upload({COLUMNS}) VALUES (?1, 0, 0, 0, 0, ?2, 0, '', 1)"),
                        (file, hash.to_string()),
                    )
                    .map_err(sql)?;
            }
        }
        let next = last_unit.next().0.cast_signed();
        transaction.execute("UPDATE main.dock_state SET next_unit = max(next_unit, ?1)", [next]).map_err(sql)?;
        transaction.commit().map_err(sql)
    }

    /// Returns the number of the next unit.
    ///
    /// # Errors
    /// A statement failed.
    pub fn next_unit(&self) -> Result<UnitNo, LocalError> {
        super::local_units::next_unit(self.connection(), self.path())
    }

    /// Returns the files that nobody needs any more: their units are all finished, and the server has the file that follows, whose chain
    /// names them.
    ///
    /// # Errors
    /// A statement failed.
    pub fn finished_uploads(&self) -> Result<Vec<FileNo>, LocalError> {
        let sql = "SELECT file_no FROM main.dock_upload AS f
                   WHERE stored = 1 AND first_unit > 0 AND NOT EXISTS (SELECT 1 FROM main.dock_unit AS u WHERE u.file_no = f.file_no)
                     AND EXISTS (SELECT 1 FROM main.dock_upload AS n WHERE n.file_no = f.file_no + 1 AND n.stored = 1) ORDER BY file_no";
        let read = || -> rusqlite::Result<Vec<FileNo>> {
            let mut statement = self.connection().prepare_cached(sql)?;
            statement.query_map([], |row| row.get::<_, i64>(0).map(|file| FileNo(file.cast_unsigned())))?.collect()
        };
        read().map_err(|source| self.upload_sql(source))
    }

    /// Forgets a file that is finished.
    ///
    /// # Errors
    /// A statement failed.
    pub fn forget_upload(&self, file: FileNo) -> Result<(), LocalError> {
        self.connection()
            .execute("DELETE FROM main.dock_upload WHERE file_no = ?1 AND stored = 1", [file.0.cast_signed()])
            .map(drop)
            .map_err(|source| self.upload_sql(source))
    }
}

/// All units that are not finished go into new files, from number 1: the incarnation is another one. Within the caller's transaction.
pub(super) fn renumber_uploads(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM main.dock_upload", [])?;
    unfile(connection, 0)
}

fn unfile(connection: &Connection, above: i64) -> rusqlite::Result<()> {
    connection
        .execute(
            "UPDATE main.dock_unit SET file_no = NULL, state = CASE state WHEN 'sent' THEN 'pending' ELSE state END WHERE file_no > ?1",
            [above],
        )
        .map(drop)
}
