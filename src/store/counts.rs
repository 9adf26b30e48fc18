//! Row counts of the server database, for what `init` and `deploy` tell a person. Nothing is decided by them.

use crate::model::schema::Schema;
use crate::store::sqlite::{ServerDatabase, StoreError, quote_name};
use std::collections::BTreeMap;

impl ServerDatabase {
    /// Returns the number of rows of every table, by its name.
    ///
    /// # Errors
    /// A statement failed.
    pub fn count_rows(&self, schema: &Schema) -> Result<BTreeMap<String, u64>, StoreError> {
        let count = |name: &str| {
            let sql = format!("SELECT count(*) FROM {}", quote_name(name));
            self.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map_err(self.fault("counting rows"))
        };
        schema.tables.iter().map(|table| Ok((table.name.clone(), count(&table.name)?.unsigned_abs()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b5_rows_of_quoted_tables_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hq.db");
        let sql = "CREATE TABLE \"a\"\"b c\"(id INTEGER PRIMARY KEY); INSERT INTO \"a\"\"b c\" VALUES(1),(2); CREATE TABLE e(id INTEGER PRIMARY KEY)";
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let database = ServerDatabase::open(&path).unwrap();
        let rows = database.count_rows(&database.schema().unwrap()).unwrap();
        assert_eq!(rows.into_iter().collect::<Vec<_>>(), [("a\"b c".to_owned(), 2), ("e".to_owned(), 0)]);
    }
}
