//! Numbers of units after a local database was restored from an older copy (fault 19).
//!
//! What was cut since the copy has numbers that the server knows already, of other units. Their confirms are about to come, and must not
//! take out ours: so units that were never sent move above every number that the server knows, in their order, before anything is applied.

use super::local::{LocalDatabase, LocalError};
use crate::base::ids::UnitNo;
use rusqlite::{Transaction, TransactionBehavior};

impl LocalDatabase {
    /// Gives pending units behind `sent`, the last one that was ever sent, numbers above `last_unit`, if any of them has one that the server
    /// knows. Returns how many moved.
    ///
    /// # Errors
    /// Another program keeps the database locked, or a statement failed: then nothing was changed.
    pub fn renumber_unsent(&self, sent: UnitNo, last_unit: UnitNo) -> Result<u64, LocalError> {
        let sql = |source| LocalError::of_sql(self.path(), "number units anew", source);
        let transaction = Transaction::new_unchecked(self.connection(), TransactionBehavior::Immediate).map_err(sql)?;
        let sent = sent.0.cast_signed();
        let unsent = "SELECT min(unit), count(*) FROM main.dock_unit WHERE state = 'pending' AND unit > ?1";
        let (first, units): (Option<i64>, i64) =
            transaction.query_row(unsent, [sent], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sql)?;
        let last = last_unit.0.cast_signed();
        let Some(first) = first.filter(|first| *first <= last) else { return Ok(0) };
        let by = last - first + 1;
        let move_all = || -> rusqlite::Result<()> {
            // Their numbers are below those of no other unit, so a shift meets itself only: by way of negative numbers.
            transaction.execute(
                "UPDATE main.dock_unit SET hidden = (
                     SELECT json_group_array(value + iif(value IN (SELECT unit FROM main.dock_unit WHERE state = 'pending' AND unit > ?2), ?1, 0))
                     FROM json_each(hidden))
                 WHERE hidden <> '[]'",
                [by, sent],
            )?;
            transaction.execute(
                "UPDATE main.dock_change SET unit = -(unit + ?1) WHERE unit IN (SELECT unit FROM main.dock_unit WHERE state = 'pending' AND unit > ?2)",
                [by, sent],
            )?;
            transaction.execute("UPDATE main.dock_unit SET unit = -(unit + ?1) WHERE state = 'pending' AND unit > ?2", [by, sent])?;
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
            connection.execute("INSERT INTO dock_change VALUES (?1, 0, 't', x'01', '1', 'insert', '[]', x'00')", [unit]).unwrap();
        }
        connection.execute("UPDATE dock_state SET next_unit = 7", []).unwrap();
        drop(connection);
        LocalDatabase::open(&path).unwrap()
    }

    #[test]
    fn f19_units_that_were_never_sent_move_above_what_the_server_knows() {
        let folder = tempfile::tempdir().unwrap();
        let local = database(&folder);
        assert_eq!(local.renumber_unsent(UnitNo(0), UnitNo(4)).unwrap(), 0);
        assert_eq!(local.renumber_unsent(UnitNo(0), UnitNo(5)).unwrap(), 2);
        let read = |sql: &str| -> String { local.connection().query_row(sql, [], |row| row.get(0)).unwrap() };
        assert_eq!(read("SELECT group_concat(unit || state || hidden, ' ') FROM dock_unit"), "4sent[] 6pending[4] 7pending[4,6]");
        assert_eq!(read("SELECT group_concat(unit) FROM dock_change"), "4,6,7");
        assert_eq!(read("SELECT next_unit FROM dock_state"), "8");
        // Far above, and again nothing to do.
        assert_eq!((local.renumber_unsent(UnitNo(0), UnitNo(90)).unwrap(), local.renumber_unsent(UnitNo(0), UnitNo(90)).unwrap()), (2, 0));
        assert_eq!(read("SELECT group_concat(unit) FROM dock_unit"), "4,91,92");
        // What was sent once keeps its number, though it is sent again.
        assert_eq!(local.renumber_unsent(UnitNo(91), UnitNo(95)).unwrap(), 1);
        assert_eq!(read("SELECT group_concat(unit) FROM dock_unit"), "4,91,96");
    }
}
