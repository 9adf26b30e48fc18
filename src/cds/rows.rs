//! Reading and writing rows of the data store.

use super::{Cds, CdsError, layout};
use crate::model::dock::{ColumnIndex, Dock, DockTable, TableIndex};
use crate::model::value::{Collation, Row, RowKey, Value};
use crate::store::sqlite::{SqlValue, value_of};
use rusqlite::params_from_iter;

/// Returns the primary key of a row.
pub(crate) fn key_of(table: &DockTable, row: &[Value]) -> RowKey {
    table.key.iter().map(|column| row.get(*column).cloned().unwrap_or(Value::Null)).collect()
}

/// Returns the values of some columns of a row.
pub(crate) fn pick(row: &[Value], columns: &[ColumnIndex]) -> Vec<Value> {
    columns.iter().map(|column| row.get(*column).cloned().unwrap_or(Value::Null)).collect()
}

/// Folds values, all under one collation.
pub(crate) fn fold_all(values: &[Value], collation: Collation) -> Vec<Value> {
    values.iter().map(|value| value.fold(collation)).collect()
}

pub(crate) fn read_row(row: &rusqlite::Row<'_>, columns: usize) -> rusqlite::Result<Row> {
    (0..columns).map(|column| row.get_ref(column).map(value_of)).collect()
}

/// Texts of the statements on one data table, built once.
#[derive(Debug)]
pub(crate) struct TableSql {
    /// `SELECT c0, c1, .. FROM d0`
    select: String,
    /// The same of one row, by its primary key.
    select_by_key: String,
    insert: String,
    delete: String,
}

impl TableSql {
    /// Returns the texts of every table of a definition.
    pub(crate) fn of(dock: &Dock) -> Vec<TableSql> {
        let of_table = |(index, declared): (usize, &DockTable)| {
            let (table, columns) = (layout::data_table(index), layout::column_list(declared));
            let terms = declared.key.iter().enumerate().map(|(at, column)| format!("c{column} = ?{}", at + 1)).collect::<Vec<_>>();
            let by_key = format!(" WHERE {}", terms.join(" AND "));
            let marks = (1..=declared.columns.len()).map(|at| format!("?{at}")).collect::<Vec<_>>().join(", ");
            TableSql {
                select: format!("SELECT {columns} FROM {table}"),
                select_by_key: format!("SELECT {columns} FROM {table}{by_key}"),
                insert: format!("INSERT INTO {table}({columns}) VALUES({marks})"),
                delete: format!("DELETE FROM {table}{by_key}"),
            }
        };
        dock.tables.iter().enumerate().map(of_table).collect()
    }
}

impl Cds {
    /// Returns the row whose primary key is equal, in SQLite's sense, to these values.
    pub(crate) fn row_equal(&self, table: TableIndex, key: &[Value]) -> Result<Option<Row>, CdsError> {
        let declared = &self.dock.tables[table];
        let wanted: Vec<(ColumnIndex, Collation)> = declared.key.iter().map(|column| (*column, Collation::Binary)).collect();
        if key.iter().any(Value::is_null) {
            return Ok(None);
        }
        let mut found = None;
        self.rows_of(&self.statements[table].select_by_key, table, &wanted, key, &mut |row| {
            found = Some(row);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Returns the row with exactly this primary key, by type and bytes.
    pub(crate) fn row_exact(&self, table: TableIndex, key: &[Value]) -> Result<Option<Row>, CdsError> {
        let found = self.row_equal(table, key)?;
        Ok(found.filter(|row| key_of(&self.dock.tables[table], row) == key))
    }

    /// Returns the rows whose columns equal the values under the given collations. NULL equals nothing.
    pub(crate) fn rows_where(
        &self,
        table: TableIndex,
        columns: &[(ColumnIndex, Collation)],
        values: &[Value],
    ) -> Result<Vec<Row>, CdsError> {
        self.rows_up_to(table, columns, values, usize::MAX)
    }

    /// Like [`Cds::rows_where`], but at most `limit` rows.
    pub(crate) fn rows_up_to(
        &self,
        table: TableIndex,
        columns: &[(ColumnIndex, Collation)],
        values: &[Value],
        limit: usize,
    ) -> Result<Vec<Row>, CdsError> {
        let mut found = Vec::new();
        self.each_where(table, columns, values, &mut |row| {
            found.push(row);
            Ok(found.len() < limit)
        })?;
        Ok(found)
    }

    /// Calls `each` with those rows, one at a time, until it returns `false`.
    pub(crate) fn each_where(
        &self,
        table: TableIndex,
        columns: &[(ColumnIndex, Collation)],
        values: &[Value],
        each: &mut dyn FnMut(Row) -> Result<bool, CdsError>,
    ) -> Result<(), CdsError> {
        if values.iter().any(Value::is_null) {
            return Ok(());
        }
        let terms = columns
            .iter()
            .enumerate()
            .map(|(at, (column, collation))| match collation {
                Collation::Binary => format!("c{column} = ?{}", at + 1),
                other => format!("c{column} = ?{} COLLATE {}", at + 1, other.name()),
            })
            .collect::<Vec<_>>()
            .join(" AND ");
        self.rows_of(&format!("{} WHERE {terms}", self.statements[table].select), table, columns, values, each)
    }

    fn rows_of(
        &self,
        text: &str,
        table: TableIndex,
        columns: &[(ColumnIndex, Collation)],
        values: &[Value],
        each: &mut dyn FnMut(Row) -> Result<bool, CdsError>,
    ) -> Result<(), CdsError> {
        let declared = &self.dock.tables[table];
        let sql = self.sql("search rows");
        let mut statement = self.conn.prepare_cached(text).map_err(&sql)?;
        let mut rows = statement.query(params_from_iter(values.iter().map(SqlValue))).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            let row = read_row(row, declared.columns.len()).map_err(&sql)?;
            // A rowid column has integer affinity, so '5' would find 5; what counts is the folded value.
            let same = columns
                .iter()
                .zip(values)
                .all(|((column, collation), value)| row.get(*column).is_some_and(|held| held.folds_to(value, *collation)));
            if same && !each(row)? {
                break;
            }
        }
        Ok(())
    }

    /// Returns the statement that reads every row of a table in the order of its key.
    pub(crate) fn in_key_order(&self, table: TableIndex) -> Result<rusqlite::Statement<'_>, CdsError> {
        let key: Vec<String> = self.dock.tables[table].key.iter().map(|column| format!("c{column}")).collect();
        let text = format!("{} ORDER BY {}", self.statements[table].select, key.join(", "));
        self.conn.prepare(&text).map_err(self.sql("read rows in order"))
    }

    /// Calls `each` with every row of a table.
    pub(crate) fn scan(&self, table: TableIndex, mut each: impl FnMut(Row) -> Result<(), CdsError>) -> Result<(), CdsError> {
        let declared = &self.dock.tables[table];
        let sql = self.sql("scan rows");
        let mut statement = self.conn.prepare(&self.statements[table].select).map_err(&sql)?;
        let mut rows = statement.query([]).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            each(read_row(row, declared.columns.len()).map_err(&sql)?)?;
        }
        Ok(())
    }

    /// Deletes the row with this key.
    pub(crate) fn delete_row(&self, table: TableIndex, key: &[Value]) -> Result<(), CdsError> {
        let sql = self.sql("delete a row");
        self.conn
            .prepare_cached(&self.statements[table].delete)
            .and_then(|mut statement| statement.execute(params_from_iter(key.iter().map(SqlValue))))
            .map_err(sql)?;
        Ok(())
    }

    /// Inserts a row.
    pub(crate) fn insert_row(&self, table: TableIndex, row: &[Value]) -> Result<(), CdsError> {
        let sql = self.sql("insert a row");
        self.conn
            .prepare_cached(&self.statements[table].insert)
            .and_then(|mut statement| statement.execute(params_from_iter(row.iter().map(SqlValue))))
            .map_err(sql)?;
        Ok(())
    }

    /// Updates the given columns of the row with this key, so that indexes on other columns are left alone.
    pub(crate) fn update_row(&self, table: TableIndex, key: &[Value], row: &[Value], changed: &[ColumnIndex]) -> Result<(), CdsError> {
        let declared = &self.dock.tables[table];
        let sets = changed.iter().enumerate().map(|(at, column)| format!("c{column} = ?{}", at + 1)).collect::<Vec<_>>().join(", ");
        let terms = declared
            .key
            .iter()
            .enumerate()
            .map(|(at, column)| format!("c{column} = ?{}", changed.len() + at + 1))
            .collect::<Vec<_>>()
            .join(" AND ");
        let values = pick(row, changed);
        let sql = self.sql("update a row");
        self.conn
            .prepare_cached(&format!("UPDATE {} SET {sets} WHERE {terms}", layout::data_table(table)))
            .and_then(|mut statement| statement.execute(params_from_iter(values.iter().chain(key).map(SqlValue))))
            .map_err(sql)?;
        Ok(())
    }
}
