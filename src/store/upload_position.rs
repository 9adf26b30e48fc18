//! How far the way up of each node is, as the server database has it: what is merged, and which units were ever known (R16).

use crate::base::ids::{ContentHash, FileNo, Incarnation, InstallId, NodeName, UnitNo};
use crate::base::limits::UPLOAD_UNITS_NAMED_MAX;
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::OptionalExtension;
use std::collections::BTreeMap;

/// The last file of a node all of whose units were executed, or refused for a person to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergedTo {
    /// Incarnation that the file is of.
    pub incarnation: Incarnation,
    /// Its number.
    pub file: FileNo,
    /// Its content hash.
    pub hash: ContentHash,
}

impl ServerDatabase {
    /// Returns how far a node's uploads are merged; `None` if nothing of it ever was.
    ///
    /// # Errors
    /// Nothing is installed, the row is damaged, or a statement failed.
    pub fn merged_to(&self, node: &NodeName) -> Result<Option<MergedTo>, StoreError> {
        self.require_installed()?;
        let fault = || self.fault("reading how far a node is merged");
        if !self.has_merger()? {
            return Ok(None);
        }
        let row: Option<(u32, i64, String)> = self
            .connection
            .prepare_cached("SELECT incarnation, file_no, content_hash FROM dock_merge WHERE node = ?1")
            .and_then(|mut statement| statement.query_row([node.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional())
            .map_err(fault())?;
        row.map(|(incarnation, file, hash)| {
            let hash = hash.parse().map_err(|error: crate::base::ids::IdError| {
                fault()(rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, error.into()))
            })?;
            Ok(MergedTo { incarnation: Incarnation(incarnation), file: FileNo(file.unsigned_abs()), hash })
        })
        .transpose()
    }

    /// Returns the files of a node in which a unit is not final, each with whether one of them is still to be begun.
    ///
    /// # Errors
    /// A statement failed.
    pub fn unfinished_files(&self, node: &NodeName) -> Result<BTreeMap<(Incarnation, FileNo), bool>, StoreError> {
        let fault = || self.fault("looking for files that are still needed");
        if !self.has_merger()? {
            return Ok(BTreeMap::new());
        }
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT incarnation, file_no, max(status <> 'error') FROM main.dock_unit
                 WHERE node = ?1 AND status IN ('waiting', 'partial', 'error') GROUP BY incarnation, file_no",
            )
            .map_err(fault())?;
        let rows = statement
            .query_map([node.as_str()], |row| {
                Ok(((Incarnation(row.get(0)?), FileNo(row.get::<_, i64>(1)?.unsigned_abs())), row.get::<_, bool>(2)?))
            })
            .map_err(fault())?;
        rows.collect::<rusqlite::Result<_>>().map_err(fault())
    }

    /// Returns the highest unit of a local database that was ever begun; 0 = none.
    ///
    /// # Errors
    /// Nothing is installed, or a statement failed.
    pub fn last_unit_of(&self, install: InstallId) -> Result<UnitNo, StoreError> {
        self.require_installed()?;
        if !self.has_merger()? {
            return Ok(UnitNo(0));
        }
        let last: i64 = self
            .connection
            .prepare_cached("SELECT ifnull(max(unit), 0) FROM dock_unit WHERE install_id = ?1")
            .and_then(|mut statement| statement.query_row([install.to_string()], |row| row.get(0)))
            .map_err(self.fault("reading the last unit of a local database"))?;
        Ok(UnitNo(last.unsigned_abs()))
    }

    /// Returns the units of a local database from a number on, with their hashes, by number; [`UPLOAD_UNITS_NAMED_MAX`] at most.
    ///
    /// # Errors
    /// Nothing is installed, a row is damaged, or a statement failed.
    pub fn units_from(&self, install: InstallId, first: UnitNo) -> Result<Vec<(UnitNo, ContentHash)>, StoreError> {
        self.require_installed()?;
        if !self.has_merger()? {
            return Ok(Vec::new());
        }
        let read = || -> rusqlite::Result<Vec<(UnitNo, ContentHash)>> {
            let sql = "SELECT unit, content_hash FROM dock_unit WHERE install_id = ?1 AND unit >= ?2 ORDER BY unit LIMIT ?3";
            let mut statement = self.connection.prepare_cached(sql)?;
            let unit = |row: &rusqlite::Row<'_>| {
                let hash = row.get::<_, String>(1)?.parse().map_err(|error: crate::base::ids::IdError| {
                    rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
                })?;
                Ok((UnitNo(row.get::<_, i64>(0)?.unsigned_abs()), hash))
            };
            let (first, most) = (i64::try_from(first.0).unwrap_or(i64::MAX), UPLOAD_UNITS_NAMED_MAX as i64);
            statement.query_map((install.to_string(), first, most), unit)?.collect()
        };
        read().map_err(self.fault("reading the units of a local database"))
    }

    /// Returns whether the tables of the Merger are there: a database that was deployed by an older program gets them with the next deploy.
    fn has_merger(&self) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT count(*) = 2 FROM sqlite_master WHERE type = 'table' AND name IN ('dock_merge', 'dock_unit')")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(self.fault("looking for the tables of the Merger"))
    }
}
