//! `verify`: asks nodes to compare themselves with what they should see, at one place of the stream (R42).
//!
//! A question is a control in the log; the Transaction Processor puts the digests of that very unit beside it, the node compares its
//! tables on reaching it and tells what it found with a session. Whoever asks only looks into `sessions.db` for the answer: the
//! service, or a later one, does the rest. Two rounds: sums of buckets, then the rows of the buckets that differ.

use super::nodes::{self, NodeError};
use super::trail::TrailError;
use crate::base::ids::NodeName;
use crate::base::limits::VERIFY_BUCKETS_MAX;
use crate::cds::Cds;
use crate::docking::error::DockingError;
use crate::docking::reports::Compared;
use crate::docking::root::{Access, DockingRoot};
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::model::digest::{BucketChoice, Difference, DifferenceKind, TableOutcome};
use crate::model::node::NodeState;
use crate::model::value::display_key;
use crate::store::control::Control;
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Why a node cannot be asked, or the answer not be read.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// The history.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// The data store.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// The node has nothing to compare.
    #[error("node {name} is {state}: only an active node can be compared")]
    NotActive {
        /// The node.
        name: NodeName,
        /// Its state.
        state: NodeState,
    },
    /// No random numbers from the system.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// Asks a node and returns the number of the question. `choice` is empty for the first round.
///
/// # Errors
/// The node is unknown or not active, or the server database refused.
pub fn ask(database: &ServerDatabase, name: &NodeName, choice: Vec<BucketChoice>) -> Result<u64, VerifyError> {
    let node = nodes::show(database, name)?;
    if node.state != NodeState::Active {
        return Err(VerifyError::NotActive { name: name.clone(), state: node.state });
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| VerifyError::Random(error.to_string()))?;
    let id = u64::from_le_bytes(bytes);
    database.append_control(&Control::Verify { node: name.clone(), id, choice })?;
    Ok(id)
}

/// Returns the answer to a question once it is whole: an outcome for every table.
///
/// # Errors
/// The history cannot be read.
pub fn answer(root: &Path, node: &NodeName, id: u64) -> Result<Option<Vec<TableOutcome>>, VerifyError> {
    let root = DockingRoot::open(root, Access::Look)?;
    let Some(sessions) = SessionsDb::open_to_read(&root.sessions_db())? else { return Ok(None) };
    let outcomes: Vec<TableOutcome> = sessions.outcomes_of(node, id)?.into_iter().map(|compared| compared.outcome).collect();
    let expected = outcomes.first().map_or(1, |outcome| outcome.tables as usize);
    Ok((outcomes.len() >= expected).then_some(outcomes))
}

/// Returns the newest answer of a node that is kept, and when it came; `None` if it never gave one.
///
/// # Errors
/// The history cannot be read.
pub fn last_answer(root: &Path, node: &NodeName) -> Result<Option<(i64, Vec<TableOutcome>)>, VerifyError> {
    let root = DockingRoot::open(root, Access::Look)?;
    let Some(sessions) = SessionsDb::open_to_read(&root.sessions_db())? else { return Ok(None) };
    let Some(Compared { at, outcome }) = sessions.newest_outcomes(node, 1)?.pop() else { return Ok(None) };
    let outcomes = sessions.outcomes_of(node, outcome.id)?;
    Ok(Some((at, outcomes.into_iter().map(|compared| compared.outcome).collect())))
}

/// Returns what the second round is to list: the buckets that differed in the first.
pub fn second_round(outcomes: &[TableOutcome]) -> Vec<BucketChoice> {
    let mut left = VERIFY_BUCKETS_MAX;
    let mut choice = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| !outcome.buckets.is_empty()) {
        let buckets: Vec<u32> = outcome.buckets.iter().copied().take(left).collect();
        left -= buckets.len();
        if !buckets.is_empty() {
            choice.push(BucketChoice { table: outcome.table.clone(), bucket_count: outcome.bucket_count, buckets });
        }
    }
    choice
}

/// Names the keys of rows that a node does not have: it knows their hashes only. Those that it should not have any more by now stay
/// without a name.
///
/// # Errors
/// The data store cannot be read.
pub fn name_missing(root: &Path, database: &ServerDatabase, name: &NodeName, outcomes: &mut [TableOutcome]) -> Result<(), VerifyError> {
    let is_unnamed = |found: &Difference| found.kind == DifferenceKind::Missing && found.key.is_empty();
    let mut wanted: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for outcome in outcomes.iter() {
        let hashes = outcome.found.iter().filter(|found| is_unnamed(found)).map(|found| found.key_hash);
        wanted.entry(outcome.table.clone()).or_default().extend(hashes);
    }
    wanted.retain(|_, hashes| !hashes.is_empty());
    if wanted.is_empty() {
        return Ok(());
    }
    let root = DockingRoot::open(root, Access::Look)?;
    let Some(cds) = Cds::look(&root.cds_db()).map_err(TrailError::from)? else { return Ok(()) };
    let registered = nodes::show(database, name)?;
    let node = cds.running_node(name).map_err(TrailError::from)?.unwrap_or(registered);
    let view = cds.node_view(&node).map_err(TrailError::from)?;
    let keys = cds.keys_by_hash(&view, &wanted).map_err(TrailError::from)?;
    for outcome in outcomes {
        for found in outcome.found.iter_mut().filter(|found| is_unnamed(found)) {
            if let Some(key) = keys.get(&(outcome.table.clone(), found.key_hash)) {
                found.key = display_key(key);
            }
        }
    }
    Ok(())
}
