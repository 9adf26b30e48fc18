//! Known errors, each planted from outside into an otherwise right pipeline: the harness must see every one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::case::Case;
use super::shadow::Shadow;
use super::writes;
use crate::oracle_router;
use dockmaster::base::ids::FileNo;

/// A known error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Everything happens, nothing is wrong.
    None,
    /// Only what happens with a fault, but nothing is wrong: the harness itself.
    Control,
    /// R7: node keys first; the router of the test.
    NodeKeysFirst,
    /// R7: node keys last; the router of the test.
    NodeKeysLast,
    /// R7: every statement of a transaction is a unit of its own.
    ChangeByChange,
    /// R8: keys are compared without their path; the router of the test.
    KeysWithoutPath,
    /// R1: triggers log `NEW.*`, and what the log says is what the row is.
    NewImages,
    /// The same, but they log the row as it is, which is right.
    LiveImages,
    /// R26: a rebuilt data store is as of now, not as of its last file.
    LostLeaves,
}

impl Fault {
    fn router(self) -> Option<oracle_router::Fault> {
        match self {
            Fault::NodeKeysFirst => Some(oracle_router::Fault::NodeKeysFirst),
            Fault::NodeKeysLast => Some(oracle_router::Fault::NodeKeysLast),
            Fault::KeysWithoutPath => Some(oracle_router::Fault::KeysWithoutPath),
            _ => None,
        }
    }
}

impl Case {
    /// Plants the fault into a site that is deployed.
    pub(super) fn plant(&mut self) {
        let control = self.fault == Fault::Control && self.rng.bool();
        if let Some(fault) = self.fault.router().or(control.then_some(oracle_router::Fault::None)) {
            self.site.in_place = Some((FileNo(0), oracle_router::Router::new(fault)));
        }
        if matches!(self.fault, Fault::NewImages | Fault::LiveImages) {
            // Those that set off no other: an endless recursion ends a statement half done, with nothing logged.
            for table in &mut self.shape.tables {
                let older = std::mem::take(&mut table.triggers.0);
                table.triggers.1.extend(older);
                table.triggers.1.retain(|trigger| trigger.contains(" INSERT ON ") && trigger.contains("BEGIN UPDATE "));
            }
            let (shadow, writer) = Shadow::new(&self.shape, &self.site.path(""), self.fault == Fault::NewImages);
            (self.site.shadow, self.site.writer) = (Some(shadow), writer);
        }
    }

    /// What happens beside a fault: no definition changes, since the router of the test does not know them.
    pub(super) fn act_wrongly(&mut self) -> Result<(), String> {
        match self.rng.u32(0..100) {
            0..50 if self.fault == Fault::ChangeByChange => self.change_by_change(),
            0..50 => {
                self.write();
                Ok(())
            }
            50..65 => self.site.txnproc(true),
            65..75 => self.site.route(),
            75..83 => {
                let name = self.any_node();
                self.site.sync(&name, usize::MAX)
            }
            83..92 => self.node(),
            92..94 => {
                self.site.day += 2;
                Ok(())
            }
            _ => {
                self.lose("cds.db");
                if self.fault == Fault::LostLeaves {
                    self.believe_end();
                }
                Ok(())
            }
        }
    }

    fn change_by_change(&mut self) -> Result<(), String> {
        self.site.txnproc(true)?;
        let before = self.site.history.last().unwrap().0;
        let statements = writes::transaction(&self.shape, &mut self.rng);
        for statement in statements.iter().filter(|statement| !statement.contains("part")) {
            writes::run(&self.site.writer, std::slice::from_ref(statement), true);
            self.site.txnproc(true)?;
        }
        self.site.history.were_parts(before);
        Ok(())
    }

    /// Says that whatever was lost had got to the end of the log.
    fn believe_end(&mut self) {
        let end = self.site.server().log_end().unwrap().0;
        let day = self.site.history.last().unwrap().1.day;
        let filled = format!("{{\"position\":{end},\"revision\":1,\"day\":{day}}}");
        let writer = &self.site.writer;
        writer.execute("UPDATE dock_meta SET value = ?1 WHERE name = 'filled'", [filled]).unwrap();
        writer.execute("UPDATE dock_tail SET position = ?1", [end]).unwrap();
    }
}
