//! What a definition would give and take from each node that runs, before it is deployed (R40): `check` and `deploy` show it.
//!
//! It is tried for real, on a copy of the data store and a snapshot of the server database, with the same code that would carry it out;
//! the copy is thrown away. Nothing that anybody reads is touched, and the service may run meanwhile.

use super::redefine::fill_from;
use super::round::operation_of;
use super::txnproc::TxnProcError;
use crate::base::clock::now_micros;
use crate::base::disk::{Disk, DiskError};
use crate::base::ids::{FileNo, Incarnation, NodeName, Revision, TxnId};
use crate::base::lock::{Hold, Lock, Taken};
use crate::cds::redefine::Redefinition;
use crate::cds::unit::UnitInput;
use crate::cds::{Cds, CdsError};
use crate::dx::error::DxError;
use crate::dx::header::{DxDirection, Header};
use crate::dx::txnproc_reader::TxnprocReader;
use crate::dx::writer::TxnprocWriter;
use crate::rules::route::{Action, NodeKeys, RouteError, UnitRoute};
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// What one node would get.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodeEffect {
    /// Rows that it would see and does not now.
    pub gained: u64,
    /// Rows that it sees and would not.
    pub lost: u64,
    /// Rows that it keeps, with other columns.
    pub changed: u64,
    /// Bytes of these, before compression.
    pub bytes: u64,
}

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data store or its copy.
    #[error(transparent)]
    Cds(#[from] CdsError),
    /// The definition could not be tried.
    #[error(transparent)]
    TxnProc(#[from] TxnProcError),
    /// The copy could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another program tries a definition on the same docking root.
    #[error("another program is trying a definition on this docking root")]
    Busy,
    /// The unit could not be read.
    #[error("the unit that was tried")]
    Dx(#[from] DxError),
    /// The unit contradicts itself.
    #[error("the unit that was tried")]
    Route(#[from] RouteError),
}

/// Returns what each running node would get of a definition, by name; nodes that would get nothing have zeros. `root` is a docking root
/// with a filled data store.
///
/// # Errors
/// Something cannot be read, or the disk has no room for a copy of the data store.
pub fn preview(database: &ServerDatabase, root: &Path, to: Redefinition) -> Result<BTreeMap<NodeName, NodeEffect>, PreviewError> {
    let copy = Copy::of(root)?;
    let mut cds = Cds::open(&copy.store)?;
    let mut keys = NodeKeys::new();
    let mut effects = BTreeMap::new();
    for (name, scope) in cds.nodes().iter() {
        keys.start(name.clone(), scope.node.incarnation, &cds.held_keys(scope)?);
        effects.insert(name.clone(), NodeEffect::default());
    }
    let unit = TxnId(cds.state().position.0 + 1);
    let revision = Revision(cds.state().revision.0 + 1);
    let input = UnitInput { unit, read_at_micros: now_micros(), revision: Some(revision), ..UnitInput::default() };
    let header = Header {
        direction: DxDirection::Txnproc,
        server_id: cds.state().server_id,
        epoch: cds.state().epoch,
        node: None,
        incarnation: Incarnation(0),
        file_no: FileNo(1),
        first: unit,
        last: unit,
        revision,
        previous: Default::default(),
        install_id: Default::default(),
        applied_unit: TxnId::default(),
    };
    let mut failed = None;
    let folder = copy.folder.clone();
    let written = copy.disk.put_with(&folder, &folder, UNIT, |out| {
        let write = || -> Result<(), TxnProcError> {
            let mut writer = TxnprocWriter::begin(&header, 1, out).map_err(TxnProcError::Encode)?;
            database.snapshot(|snapshot| fill_from(&mut cds, snapshot, to, &input, &[], &mut writer))?;
            writer.finish().map(drop).map_err(TxnProcError::Encode)
        };
        write().map_err(|error| {
            let text = error.to_string();
            failed = Some(error);
            std::io::Error::other(text)
        })
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    written?;
    count(&copy, &mut keys, &mut effects)?;
    Ok(effects)
}

/// Routes the unit and counts.
fn count(copy: &Copy, keys: &mut NodeKeys, effects: &mut BTreeMap<NodeName, NodeEffect>) -> Result<(), PreviewError> {
    let mut reader = TxnprocReader::open(BufReader::new(copy.disk.open(&copy.folder.join(UNIT))?))?;
    let mut parts = reader.parts();
    let mut routing = None;
    while let Some(part) = parts.next_part()? {
        let route = match &mut routing {
            Some(route) => route,
            None => routing.insert(UnitRoute::begin(keys, part.unit)?),
        };
        let routed = route.part(keys, part.unit)?;
        let mut encoded = Vec::new();
        for delivery in &routed.deliveries {
            let (Some(event), Some(audience)) = (part.unit.rows.get(delivery.row), routed.audiences.get(delivery.audience)) else {
                continue;
            };
            encoded.clear();
            operation_of(event, delivery.action)?.encode_into(&mut encoded)?;
            let bytes = encoded.len() as u64;
            for node in audience.iter() {
                let Some(effect) = keys.node(*node).and_then(|(name, _)| effects.get_mut(name)) else { continue };
                effect.bytes += bytes;
                *match delivery.action {
                    Action::Put => &mut effect.gained,
                    Action::Delete => &mut effect.lost,
                    Action::Update => &mut effect.changed,
                } += 1;
            }
        }
    }
    Ok(())
}

/// Name of the unit's file.
const UNIT: &str = "preview.dx";

/// A copy of the data store in a folder of its own, which whoever holds its lock may empty.
struct Copy {
    folder: PathBuf,
    store: PathBuf,
    disk: Disk,
    _lock: Lock,
}

impl Copy {
    fn of(root: &Path) -> Result<Copy, PreviewError> {
        let (folder, disk) = (root.join("preview"), Disk::new());
        disk.ensure_folder(&folder)?;
        let lock = match Lock::take(&disk, &root.join("preview.lock"), Hold::Exclusive)? {
            Taken::Held(lock) => lock,
            Taken::Busy(_) => return Err(PreviewError::Busy),
        };
        let copy = Copy { store: folder.join("cds.db"), folder, disk, _lock: lock };
        copy.disk.clean_tmp(&copy.folder)?;
        Cds::copy_to(&root.join("cds.db"), &copy.store)?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = self.disk.clean_tmp(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "what was tried could not be removed");
        }
    }
}
