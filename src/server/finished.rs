//! What a stream that begins anew has to say of units that the node sent before: their confirms went by in a stream that ended.

use crate::base::ids::NodeName;
use crate::cds::Cds;
use crate::cds::unit::UnitInput;
use crate::model::event::ConfirmEvent;
use crate::model::upload::{Confirm, FinishedUnit};
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::StoreError;
use std::collections::BTreeMap;

/// Units that nodes sent and that are finished, of nodes whose stream begins anew (R16): read in the snapshot of the unit with which it does.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// For the extracts of those that start.
    pub(super) of_started: BTreeMap<NodeName, Vec<FinishedUnit>>,
    /// For the streams of those that begin anew in band.
    of_restarted: BTreeMap<NodeName, Vec<Confirm>>,
}

impl Finished {
    /// Looks up who begins anew with the unit, and reads what is to be told.
    pub(super) fn of(cds: &Cds, snapshot: &Snapshot<'_>, input: &UnitInput) -> Result<Finished, StoreError> {
        let (started, restarted) = cds.begun_by(input);
        let mut finished = Finished::default();
        for node in started {
            let units = snapshot.finished_units(&node)?;
            finished.of_started.insert(node, units);
        }
        for node in restarted {
            let confirms = snapshot.finished_confirms(&node)?;
            finished.of_restarted.insert(node, confirms);
        }
        Ok(finished)
    }

    /// Puts the confirms of streams that begin anew into the unit, held units too: its own ones are among them.
    pub(super) fn tell(&self, input: &mut UnitInput) {
        input.confirms.retain(|event| !self.of_restarted.contains_key(&event.node));
        let told = self.of_restarted.iter().flat_map(|(node, confirms)| confirms.iter().map(move |confirm| (node, confirm)));
        input.confirms.extend(told.map(|(node, confirm)| ConfirmEvent { node: node.clone(), confirm: confirm.clone() }));
    }
}
