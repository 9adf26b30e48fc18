//! One read snapshot of the server database, for the first filling of the data store and for comparing with it.
//!
//! Everything read through one [`Snapshot`] is as of one transaction boundary, the end of the log included. Writers are not held up.

use crate::base::ids::{Revision, TxnId};
use crate::model::node::Node;
use crate::model::schema::Schema;
use crate::model::value::{Row, Value};
use crate::store::deployed::Deployed;
use crate::store::install::Identity;
use crate::store::log::too_long;
use crate::store::schema::read_shape;
use crate::store::sqlite::{ServerDatabase, StoreError, quote_name, value_of};

/// A read transaction on the server database.
#[derive(Debug)]
pub struct Snapshot<'a> {
    pub(crate) database: &'a ServerDatabase,
}

impl ServerDatabase {
    /// Runs `read` in one read transaction.
    ///
    /// # Errors
    /// Those of `read`, or a statement failed.
    pub fn snapshot<T, E: From<StoreError>>(&self, read: impl FnOnce(&Snapshot<'_>) -> Result<T, E>) -> Result<T, E> {
        let transaction = self.connection.unchecked_transaction().map_err(self.fault("beginning a snapshot"))?;
        // A deferred transaction takes its snapshot at its first read: take it now, before the caller looks at anything else.
        self.log_end()?;
        let result = read(&Snapshot { database: self })?;
        transaction.rollback().map_err(self.fault("ending a snapshot"))?;
        Ok(result)
    }
}

impl Snapshot<'_> {
    /// Returns the end of the log: the position as of which everything here is read.
    ///
    /// # Errors
    /// A statement failed.
    pub fn log_end(&self) -> Result<TxnId, StoreError> {
        self.database.log_end()
    }

    /// Returns a deployed definition.
    ///
    /// # Errors
    /// The row is damaged, or a statement failed.
    pub fn deployed(&self, revision: Revision) -> Result<Option<Deployed>, StoreError> {
        self.database.deployed(revision)
    }

    /// Returns the schema.
    ///
    /// # Errors
    /// A statement failed.
    pub fn schema(&self) -> Result<Schema, StoreError> {
        self.database.schema()
    }

    /// Returns the nodes.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.database.nodes()
    }

    /// Returns who the database is, and the revision in force.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn identity(&self) -> Result<Identity, StoreError> {
        self.database.identity()
    }

    /// Calls `visit` with those columns of every row of a table, in no promised order. Returns the number of rows.
    ///
    /// # Errors
    /// Those of `visit`, or a statement failed.
    pub fn scan<E: From<StoreError>>(&self, table: &str, columns: &[String], visit: impl FnMut(Row) -> Result<(), E>) -> Result<u64, E> {
        self.visit(table, columns, "", visit)
    }

    /// Like [`Snapshot::scan`], in the order of the table's key by [`Value::sql_order`]; `key` holds positions in `columns`.
    ///
    /// # Errors
    /// [`StoreError::Table`] at a row that cannot be carried; those of `visit`; or a statement failed.
    pub fn scan_by_key<E: From<StoreError>>(
        &self,
        table: &str,
        columns: &[String],
        key: &[usize],
        mut visit: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<u64, E> {
        let terms: Vec<String> =
            key.iter().filter_map(|at| columns.get(*at)).map(|name| format!("{} COLLATE BINARY", quote_name(name))).collect();
        self.visit(table, columns, &format!(" ORDER BY {}", terms.join(", ")), |row| {
            if key.iter().any(|at| row.get(*at).is_none_or(Value::is_null)) {
                let reason = "a row has NULL in its primary key".to_owned();
                return Err(StoreError::Table { table: table.to_owned(), reason }.into());
            }
            visit(row)
        })
    }

    /// Returns why a table cannot be read by those columns and that key; `None` if it can.
    ///
    /// # Errors
    /// A statement failed.
    pub fn misfit(&self, table: &str, columns: &[String], key: &[usize]) -> Result<Option<String>, StoreError> {
        let shape = read_shape(&self.database.connection, table).map_err(self.database.fault("reading the schema"))?;
        let Some(shape) = shape else { return Ok(Some("the table is gone".to_owned())) };
        let place = |name: &String| shape.column(name);
        if let Some(gone) = columns.iter().find(|column| place(column).is_none()) {
            return Ok(Some(format!("its column `{gone}` is gone")));
        }
        let wanted: Vec<usize> = key.iter().filter_map(|at| place(columns.get(*at)?)).collect();
        Ok((wanted != shape.key).then(|| "its primary key was declared anew".to_owned()))
    }

    fn visit<E: From<StoreError>>(
        &self,
        table: &str,
        columns: &[String],
        order: &str,
        mut visit: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<u64, E> {
        let action = format!("reading {table}");
        let fault = || self.database.fault(&action);
        let names: Vec<String> = columns.iter().map(|name| quote_name(name)).collect();
        let sql = format!("SELECT {} FROM main.{}{order}", names.join(", "), quote_name(table));
        let mut statement = self.database.connection.prepare(&sql).map_err(fault())?;
        let mut rows = statement.query([]).map_err(fault())?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(fault())? {
            let values: Row = (0..columns.len()).map(|place| row.get_ref(place).map(value_of)).collect::<Result<_, _>>().map_err(fault())?;
            if let Some(what) = too_long(columns, &values) {
                return Err(StoreError::Table { table: table.to_owned(), reason: format!("a row cannot be carried: {what}") }.into());
            }
            visit(values)?;
            count += 1;
        }
        Ok(count)
    }
}
