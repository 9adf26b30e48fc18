//! Tables that stand still while another definition is put into force: capture of them is in doubt, and the table itself is not what
//! the definition was deployed for any more.
//!
//! Their rows are carried over from the former data store, so nodes keep what they hold. Where the former rows do not tell all that
//! nodes would hold by the new definition, or might not fit the new shape of the nodes' tables, the table has no rows until it goes
//! on: less than a node may see, never more.

use super::rows::read_row;
use super::{Cds, CdsError};
use crate::model::dock::{ColumnIndex, DockTable, TableIndex};
use crate::model::value::{Row, Value};
use crate::store::local_schema::Reshape;
use std::collections::BTreeSet;

/// Where a column of a carried row comes from.
enum Source {
    Former(ColumnIndex),
    /// The value that nodes' tables give to a column which they append.
    Default(Value),
}

impl Cds {
    /// Fills tables that stand still with the rows that they had. Returns those that have none now.
    pub(super) fn keep_rows(
        &self,
        former: &Cds,
        standing: &BTreeSet<TableIndex>,
        shape: &Reshape,
    ) -> Result<BTreeSet<TableIndex>, CdsError> {
        let mut emptied = BTreeSet::new();
        for table in standing {
            match former.carried(self, *table, shape) {
                Some((old, columns)) => self.carry_rows(former, old, *table, &columns)?,
                None => drop(emptied.insert(*table)),
            }
        }
        Ok(emptied)
    }

    /// Returns the table here from which the rows of a table of another definition can come, and where each column is.
    fn carried(&self, to: &Cds, table: TableIndex, shape: &Reshape) -> Option<(TableIndex, Vec<Source>)> {
        let declared = &to.dock.tables[table];
        if shape.is_made_anew(&declared.name) {
            return None;
        }
        let index = self.dock.table(&declared.name)?;
        let old = &self.dock.tables[index];
        let key = |of: &DockTable| -> Vec<String> { of.key.iter().map(|column| of.columns[*column].name.to_ascii_lowercase()).collect() };
        if key(old) != key(declared) {
            return None;
        }
        let appended = shape.appended.iter().find(|(name, _)| name.eq_ignore_ascii_case(&declared.name)).map(|(_, columns)| columns);
        let source = |name: &str| {
            let default = || appended?.iter().find(|(column, _)| column.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
            old.column(name).map(Source::Former).or_else(|| default().map(Source::Default))
        };
        Some((index, declared.columns.iter().map(|column| source(&column.name)).collect::<Option<_>>()?))
    }

    fn carry_rows(&self, former: &Cds, old: TableIndex, table: TableIndex, columns: &[Source]) -> Result<(), CdsError> {
        let sql = former.sql("read the former rows");
        let mut statement = former.in_key_order(old)?;
        let mut rows = statement.query([]).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            let row = read_row(row, former.dock.tables[old].columns.len()).map_err(&sql)?;
            let carried: Row = columns
                .iter()
                .map(|source| match source {
                    Source::Former(column) => row.get(*column).cloned().unwrap_or(Value::Null),
                    Source::Default(value) => value.clone(),
                })
                .collect();
            self.insert_row(table, &carried)?;
        }
        Ok(())
    }
}
