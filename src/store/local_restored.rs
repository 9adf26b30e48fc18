//! Numbers of units after a local database was restored from an older copy (fault 19).
//!
//! What was cut since the copy has numbers that the server knows already, of other units. Their confirms are about to come, and must not
//! take out ours: so units that were never sent move above every number that the server knows, in their order, before anything is applied.

use super::local::{LocalDatabase, LocalError};
use crate::base::ids::UnitNo;
use rusqlite::{Transaction, TransactionBehavior};

/// Units that the server cannot know: none behind them was ever in a file.
const UNSENT: &str = "unit > (SELECT ifnull(max(unit), 0) FROM main.dock_unit WHERE offered = 1 OR state <> 'pending')";

impl LocalDatabase {
    /// Returns the pending units up to `last_unit` that were never in a file, as far as this database knows.
    ///
    /// # Errors
    /// A statement failed.
    pub fn unsent_units(&self, last_unit: UnitNo) -> Result<Vec<UnitNo>, LocalError> {
        let sql = format!("SELECT unit FROM main.dock_unit WHERE unit <= ?1 AND {UNSENT} ORDER BY unit");
        let read = || -> rusqlite::Result<Vec<UnitNo>> {
            let mut statement = self.connection().prepare_cached(&sql)?;
            statement.query_map([last_unit.0.cast_signed()], |row| row.get::<_, i64>(0).map(|unit| UnitNo(unit.cast_unsigned())))?.collect()
        };
        read().map_err(|source| LocalError::of_sql(self.path(), "look for units that were never sent", source))
    }

    /// Returns the first unit that was never in a file, as far as this database knows; else the number of the next unit.
    ///
    /// # Errors
    /// A statement failed.
    pub fn first_unsent(&self) -> Result<UnitNo, LocalError> {
        let sql = format!("SELECT min(unit) FROM main.dock_unit WHERE {UNSENT}");
        let read = || self.connection().prepare_cached(&sql)?.query_row([], |row| row.get::<_, Option<i64>>(0));
        match read().map_err(|source| LocalError::of_sql(self.path(), "look for units that were never sent", source))? {
            Some(unit) => Ok(UnitNo(unit.cast_unsigned())),
            None => self.next_unit(),
        }
    }

    /// Notes that all pending units to this one were in a file: the server may know them.
    ///
    /// # Errors
    /// A statement failed.
    pub fn mark_offered(&self, upto: UnitNo) -> Result<(), LocalError> {
        self.connection()
            .execute("UPDATE main.dock_unit SET offered = 1 WHERE unit <= ?1", [upto.0.cast_signed()])
            .map(drop)
            .map_err(|source| LocalError::of_sql(self.path(), "note which units were sent", source))
    }

    /// Gives pending units that were never in a file numbers above `last_unit`, if any of them has one that the server knows. Returns how
    /// many moved.
    ///
    /// # Errors
    /// Another program keeps the database locked, or a statement failed: then nothing was changed.
    pub fn renumber_unsent(&self, last_unit: UnitNo) -> Result<u64, LocalError> {
        let sql = |source| LocalError::of_sql(self.path(), "number units anew", source);
        let transaction = Transaction::new_unchecked(self.connection(), TransactionBehavior::Immediate).map_err(sql)?;
        let (first, units): (Option<i64>, i64) = transaction
            .query_row(&format!("SELECT min(unit), count(*) FROM main.dock_unit WHERE {UNSENT}"), [], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(sql)?;
        let last = last_unit.0.cast_signed();
        let Some(first) = first.filter(|first| *first <= last) else { return Ok(0) };
        let by = last - first + 1;
        let move_all = || -> rusqlite::Result<()> {
            // Their numbers are above those of all others, so a shift meets itself only: by way of negative numbers.
            transaction.execute(
                "UPDATE main.dock_unit SET hidden = (SELECT json_group_array(value + iif(value >= ?2, ?1, 0)) FROM json_each(hidden))
                 WHERE hidden <> '[]'",
                [by, first],
            )?;
            transaction.execute("UPDATE main.dock_change SET unit = -(unit + ?1) WHERE unit >= ?2", [by, first])?;
            transaction.execute("UPDATE main.dock_unit SET unit = -(unit + ?1) WHERE unit >= ?2", [by, first])?;
            transaction.execute("UPDATE main.dock_change SET unit = -unit WHERE unit < 0", [])?;
            transaction.execute("UPDATE main.dock_unit SET unit = -unit WHERE unit < 0", [])?;
            transaction.execute("UPDATE main.dock_state SET next_unit = max(next_unit, 1 + (SELECT max(unit) FROM main.dock_unit))", [])?;
            Ok(())
        };
        move_all().map_err(sql)?;
        transaction.commit().map_err(sql)?;
        Ok(units.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, Revision, ServerId, TxnId};
    use crate::store::local::{LocalState, create};
    use rusqlite::Connection;

    fn database(folder: &tempfile::TempDir) -> LocalDatabase {
        let path = folder.path().join("pos.db");
        let connection = Connection::open(&path).unwrap();
        let state = LocalState {
            server_id: ServerId([1; 16]),
            server_name: "HQ".into(),
            epoch: Epoch(1),
            node: "ANNA".parse().unwrap(),
            incarnation: Incarnation(1),
            install_id: Some(InstallId([2; 16])),
            applied_file: FileNo(0),
            applied_unit: TxnId(0),
            chain_hash: ContentHash::default(),
            revision: Revision(1),
            stopped: None,
        };
        create(&connection, &state, &[]).unwrap();
        for (unit, state, hidden) in [(4, "sent", "[]"), (5, "pending", "[4]"), (6, "pending", "[4,5]")] {
            connection
                .execute(
                    "INSERT INTO dock_unit(unit, state, applied, revision, cut_at, hidden, changes) VALUES (?1, ?2, 0, 1, 0, ?3, 1)",
                    (unit, state, hidden),
                )
                .unwrap();
            connection
                .execute("INSERT INTO dock_change VALUES (?1, 0, 't', x'01', NULL, '1', 'insert', '[]', '[]', x'00')", [unit])
                .unwrap();
        }
        connection.execute("UPDATE dock_state SET next_unit = 7", []).unwrap();
        drop(connection);
        LocalDatabase::open(&path).unwrap()
    }

    #[test]
    fn f19_units_that_were_never_sent_move_above_what_the_server_knows() {
        let folder = tempfile::tempdir().unwrap();
        let local = database(&folder);
        assert_eq!(local.renumber_unsent(UnitNo(4)).unwrap(), 0);
        assert_eq!(local.renumber_unsent(UnitNo(5)).unwrap(), 2);
        let read = |sql: &str| -> String { local.connection().query_row(sql, [], |row| row.get(0)).unwrap() };
        assert_eq!(read("SELECT group_concat(unit || state || hidden, ' ') FROM dock_unit"), "4sent[] 6pending[4] 7pending[4,6]");
        assert_eq!(read("SELECT group_concat(unit) FROM dock_change"), "4,6,7");
        assert_eq!(read("SELECT CAST(next_unit AS TEXT) FROM dock_state"), "8");
        // Far above, and again nothing to do.
        assert_eq!((local.renumber_unsent(UnitNo(90)).unwrap(), local.renumber_unsent(UnitNo(90)).unwrap()), (2, 0));
        assert_eq!(read("SELECT group_concat(unit) FROM dock_unit"), "4,91,92");
        // What was sent once keeps its number, though it is sent again.
        local.mark_offered(UnitNo(91)).unwrap();
        assert_eq!((local.unsent_units(UnitNo(91)).unwrap(), local.unsent_units(UnitNo(95)).unwrap()), (vec![], vec![UnitNo(92)]));
        assert_eq!(local.renumber_unsent(UnitNo(95)).unwrap(), 1);
        assert_eq!(read("SELECT group_concat(unit) FROM dock_unit"), "4,91,96");
    }
}
