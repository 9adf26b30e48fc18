//! Known errors, each planted from outside into an otherwise right way up: the harness must see every one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::case::Case;
use super::model;
use crate::pipeline::site::said;
use dockmaster::base::ids::NodeName;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

/// A known error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Everything happens, nothing is wrong.
    None,
    /// R21: what local work is undone to is what stood before the last change, as the log tells it, not the server's row.
    UndoByLog,
    /// R10: foreign keys act while files are applied.
    ForeignKeysAtApply,
    /// R21: nobody notes the server's row of a row that is deleted.
    ForgottenBase,
    /// R16: the server forgets what it merged of a node whose stream begins anew.
    ExecutedTwice,
    /// R30: a confirm takes out all units to its own.
    ConfirmUpTo,
}

impl Case {
    fn program(&self, name: &NodeName) -> std::rc::Rc<Connection> {
        self.yard.laptops[name].program()
    }

    pub(super) fn plant_before_write(&mut self, name: &NodeName) -> Result<(), String> {
        let program = self.program(name);
        let captured = captures(&program)?;
        match self.fault {
            Fault::ForgottenBase => {
                for (id, _, _) in captured {
                    program.execute_batch(&format!("DROP TRIGGER IF EXISTS dock_bd_{id}")).map_err(said)?;
                }
            }
            Fault::UndoByLog => {
                for (id, table, columns) in captured {
                    // Each entry that is there is overwritten by what its row is now.
                    let keys: Vec<usize> = primary_key(&program, &table, &columns)?;
                    let equal: Vec<String> = keys.iter().map(|at| format!("t.\"{}\" = b.c{}", columns[*at], at + 1)).collect();
                    let from = format!("FROM \"{table}\" AS t WHERE {}", equal.join(" AND "));
                    let set: Vec<String> =
                        columns.iter().enumerate().map(|(at, name)| format!("c{} = (SELECT t.\"{name}\" {from})", at + 1)).collect();
                    program
                        .execute_batch(&format!(
                            "UPDATE dock_base_{id} AS b SET present = 1, {} WHERE EXISTS (SELECT 1 {from})",
                            set.join(", ")
                        ))
                        .map_err(said)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn plant_before_apply(&mut self, name: &NodeName) -> Result<(), String> {
        if self.fault == Fault::ForeignKeysAtApply
            && let Some(laptop) = self.yard.laptops.get(name)
        {
            let tables = model::read(&laptop.program(), &self.yard.infos).map_err(said)?;
            self.before_apply = Some((laptop.applied, tables));
        }
        Ok(())
    }

    pub(super) fn plant_after_apply(&mut self, name: &NodeName) -> Result<(), String> {
        match self.fault {
            Fault::ConfirmUpTo => {
                let Some(last) = self.yard.finished(name)?.last().copied() else { return Ok(()) };
                let program = self.program(name);
                program.execute("DELETE FROM dock_change WHERE unit <= ?1", [last]).map_err(said)?;
                program.execute("DELETE FROM dock_unit WHERE unit <= ?1", [last]).map_err(said)?;
                self.yard.compare(name)
            }
            Fault::ForeignKeysAtApply => self.act_on_children(name),
            _ => Ok(()),
        }
    }

    /// What foreign keys would have done if they had acted: of one unit, deletes came before children moved to other parents.
    fn act_on_children(&mut self, name: &NodeName) -> Result<(), String> {
        let Some((applied, before)) = self.before_apply.take() else { return Ok(()) };
        let Some(laptop) = self.yard.laptops.get(name) else { return Ok(()) };
        if self.yard.site.history.units_between(applied, laptop.applied) != 1 {
            return Ok(());
        }
        let program = Connection::open(&laptop.path).map_err(said)?;
        program.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).map_err(said)?;
        let (infos, now) = (&self.yard.infos, model::read(&program, &self.yard.infos).map_err(said)?);
        for (child, info) in infos.iter().enumerate() {
            let mut statement = program
                .prepare("SELECT \"table\", \"from\" FROM pragma_foreign_key_list(?1) WHERE on_delete = 'CASCADE' GROUP BY id HAVING count(*) = 1")
                .map_err(said)?;
            let keys: Vec<(String, String)> = statement
                .query_map([&info.name], |row| Ok((row.get(0)?, row.get(1)?)))
                .map_err(said)?
                .collect::<Result<_, _>>()
                .map_err(said)?;
            for (parent, column) in keys {
                let Some(parent) = infos.iter().position(|info| info.name.eq_ignore_ascii_case(&parent)) else { continue };
                let at = info.columns.iter().position(|name| *name == column).unwrap();
                for (key, row) in &before[&child] {
                    let of = infos[parent].fold(std::slice::from_ref(&row[at]));
                    let is_gone = before[&parent].contains_key(&of) && !now[&parent].contains_key(&of);
                    if is_gone && now[&child].contains_key(key) {
                        let terms = info.key.iter().zip(info.key_of(row)).map(|(at, value)| format!("\"{}\" = {value}", info.columns[*at]));
                        let condition = terms.collect::<Vec<_>>().join(" AND ");
                        program.execute_batch(&format!("DELETE FROM \"{}\" WHERE {condition}", info.name)).map_err(said)?;
                    }
                }
            }
        }
        self.yard.compare(name)
    }

    pub(super) fn plant_at_restart(&mut self, name: &NodeName) -> Result<(), String> {
        if self.fault == Fault::ExecutedTwice {
            let writer = &self.yard.site.writer;
            writer.execute("DELETE FROM dock_unit WHERE node = ?1", [name.as_str()]).map_err(said)?;
        }
        Ok(())
    }
}

/// How tables are captured: number, table, columns.
fn captures(program: &Connection) -> Result<Vec<(i64, String, Vec<String>)>, String> {
    let mut statement = program.prepare("SELECT id, table_name, columns FROM dock_capture").map_err(said)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))).map_err(said)?;
    rows.map(|row| row.map(|(id, table, columns)| (id, table, serde_json::from_str(&columns).unwrap())).map_err(said)).collect()
}

fn primary_key(program: &Connection, table: &str, columns: &[String]) -> Result<Vec<usize>, String> {
    let mut statement = program.prepare("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk").map_err(said)?;
    let names: Vec<String> = statement.query_map([table], |row| row.get(0)).map_err(said)?.collect::<Result<_, _>>().map_err(said)?;
    Ok(names.iter().map(|name| columns.iter().position(|column| column == name).unwrap()).collect())
}
