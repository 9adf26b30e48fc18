//! One round of the Transaction Router: operations collected per audience, then made into node files.
//!
//! An audience is a distinct set of nodes. What goes to an audience is encoded once; from a certain size on it is also
//! compressed and hashed once, as frames that every file of the audience carries. What is small is copied into each
//! node's own frame, in the order of units.
//!
//! Content is a function of the units and the streams before them: audiences are numbered by first use, never by node
//! index, address or time.
//!
//! A round ends with a unit. A unit may be larger than memory: what was collected of it is sealed and put aside on disk each time
//! that it reaches a size, and a node's file is put together from there. Sizes are counted, so this too is a function of the units.

use crate::base::disk::DiskError;
use crate::base::ids::{Epoch, FileNo, Incarnation, NodeName, Revision, ServerId, TxnId};
use crate::base::limits::{
    DX_PART_BYTES_GOAL, ROUTER_FILE_OPERATIONS_GOAL, ROUTER_FILES_PER_THREAD_MIN, ROUTER_HELD_BYTES_MAX, ROUTER_ROUND_BYTES_GOAL,
    ROUTER_SHARED_FRAME_BYTES_MIN,
};
use crate::base::workers::in_runs;
use crate::docking::ledger::{NodeChange, OutboxFile, Stream};
use crate::dx::error::DxError;
use crate::dx::frame::{FrameBuilder, SealedFrame, Sealer};
use crate::dx::header::{DxDirection, Header};
use crate::dx::record::OperationView;
use crate::dx::writer::FileSummary;
use crate::model::event::{NodeEvent, RowEvent, ScopeKey, TableHeading, UnitControls, UnitEvents};
use crate::model::upload::Confirm;
use crate::model::value::display_key;
use crate::rules::route::{Action, Audience, NodeIndex, NodeKeys, Routed};
use crate::server::spool::{FrameSpool, SpooledFrame};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// When a round is closed and what is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundLimits {
    /// Closed after the unit with which some node has this many operations.
    pub file_operations_goal: u64,
    /// Closed after the unit with which it has this many encoded bytes.
    pub round_bytes_goal: usize,
    /// Frames for several nodes are shared from this many bytes on.
    pub shared_frame_bytes_min: usize,
    /// What was collected goes to disk from this many bytes on.
    pub held_bytes_max: usize,
    /// Units are read in parts of about this many bytes of rows.
    pub part_bytes_goal: usize,
}

impl Default for RoundLimits {
    fn default() -> RoundLimits {
        RoundLimits {
            file_operations_goal: ROUTER_FILE_OPERATIONS_GOAL,
            round_bytes_goal: ROUTER_ROUND_BYTES_GOAL,
            shared_frame_bytes_min: ROUTER_SHARED_FRAME_BYTES_MIN,
            held_bytes_max: ROUTER_HELD_BYTES_MAX,
            part_bytes_goal: DX_PART_BYTES_GOAL,
        }
    }
}

/// An event that cannot become an operation.
#[derive(Debug, thiserror::Error)]
#[error("unit {unit}, table `{table}`, row {key}")]
pub struct CollectError {
    /// The unit.
    pub unit: TxnId,
    /// The table.
    pub table: String,
    /// The row's key.
    pub key: String,
    /// Why.
    pub source: DxError,
}

#[derive(Debug)]
struct Entry {
    unit: TxnId,
    heading: usize,
    operation: Range<usize>,
}

/// What one audience gets.
#[derive(Debug)]
struct Bucket {
    audience: Audience,
    /// Operations, those put aside too.
    operations: u64,
    /// What was put aside, in order.
    aside: Vec<Arc<SpooledFrame>>,
    entries: Vec<Entry>,
    bytes: Vec<u8>,
    /// What units tell the audience beside operations.
    controls: BTreeMap<TxnId, UnitControls>,
}

/// Operations and node changes of the units of a round.
#[derive(Debug, Default)]
pub(crate) struct RoundContent {
    limits: RoundLimits,
    headings: Vec<TableHeading>,
    heading_ids: HashMap<TableHeading, usize>,
    buckets: Vec<Bucket>,
    bucket_ids: HashMap<Audience, usize>,
    bytes: usize,
    /// Bytes in memory.
    held: usize,
    operations: u64,
    /// Below this many operations no node can have reached its goal; counting anew is not worth it.
    count_at: u64,
    /// In order, for the ledger.
    pub(crate) changes: Vec<NodeChange>,
}

/// A node's file to be written.
#[derive(Debug)]
pub(crate) struct PlannedFile {
    pub(crate) header: Header,
    pub(crate) node: NodeName,
    pub(crate) frames: Vec<PlannedFrame>,
}

/// A frame of a planned file.
#[derive(Debug, Clone)]
pub(crate) enum PlannedFrame {
    /// In memory.
    Held(Arc<SealedFrame>),
    /// Put aside.
    Aside(Arc<SpooledFrame>),
}

/// What was collected could not be put aside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AsideError {
    /// It cannot become a frame.
    #[error(transparent)]
    Dx(#[from] DxError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl PlannedFile {
    /// Returns the ledger row of the written file.
    pub(crate) fn row(&self, summary: &FileSummary, created: &str) -> OutboxFile {
        OutboxFile {
            node: self.node.clone(),
            incarnation: self.header.incarnation,
            file_no: self.header.file_no,
            first: self.header.first,
            last: self.header.last,
            content_hash: summary.content_hash,
            byte_hash: summary.byte_hash,
            bytes: summary.bytes,
            operations: summary.operations,
            created: created.to_owned(),
        }
    }
}

/// What all files of a round have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoundRange {
    pub(crate) server_id: ServerId,
    pub(crate) epoch: Epoch,
    pub(crate) revision: Revision,
    /// The Router is as of this unit after the round.
    pub(crate) upto: TxnId,
}

impl RoundContent {
    pub(crate) fn new(limits: RoundLimits) -> RoundContent {
        RoundContent { limits, count_at: limits.file_operations_goal, ..RoundContent::default() }
    }

    /// Adds the node events of a unit, before anything that was routed of it.
    pub(crate) fn begin_unit(&mut self, unit: &UnitEvents) {
        self.changes.extend(unit.nodes.iter().map(|event| change_of(unit, event)));
    }

    /// Adds a unit, or a part of it, that was routed.
    pub(crate) fn collect(&mut self, unit: &UnitEvents, routed: &Routed) -> Result<(), CollectError> {
        self.collect_controls(unit, routed);
        // The unit's headings and audiences are looked up once each, not per row.
        let mut headings: Vec<Option<usize>> = vec![None; unit.tables.len()];
        let mut buckets: Vec<Option<usize>> = vec![None; routed.audiences.len()];
        for delivery in &routed.deliveries {
            let (Some(event), Some(audience)) = (unit.rows.get(delivery.row), routed.audiences.get(delivery.audience)) else {
                // A row that is left out in silence would be missing at a node for ever.
                let source = DxError::Content(format!("row {} of the unit was routed but is not there", delivery.row));
                return Err(CollectError { unit: unit.unit, table: String::new(), key: String::new(), source });
            };
            let error = |source| CollectError {
                unit: unit.unit,
                table: unit.tables.get(event.table as usize).map(|table| table.name.clone()).unwrap_or_default(),
                key: display_key(&event.key),
                source,
            };
            let missing = || DxError::Content("the event has no heading".to_owned());
            let table = unit.tables.get(event.table as usize).ok_or_else(missing).map_err(error)?;
            let heading = match headings.get(event.table as usize).copied().flatten() {
                Some(heading) => heading,
                None => {
                    let heading = self.heading(table);
                    if let Some(place) = headings.get_mut(event.table as usize) {
                        *place = Some(heading);
                    }
                    heading
                }
            };
            let bucket = match buckets.get(delivery.audience).copied().flatten() {
                Some(bucket) => bucket,
                None => {
                    let bucket = self.bucket(audience);
                    if let Some(place) = buckets.get_mut(delivery.audience) {
                        *place = Some(bucket);
                    }
                    bucket
                }
            };
            let operation = operation_of(event, delivery.action).map_err(error)?;
            if let Some(bucket) = self.buckets.get_mut(bucket) {
                let start = bucket.bytes.len();
                operation.encode_into(&mut bucket.bytes).map_err(error)?;
                bucket.entries.push(Entry { unit: unit.unit, heading, operation: start..bucket.bytes.len() });
                bucket.operations += 1;
                let bytes = bucket.bytes.len() - start;
                self.bytes += bytes;
                self.held += bytes + size_of::<Entry>();
            }
            self.operations += 1;
        }
        Ok(())
    }

    /// Adds what the unit tells nodes beside operations.
    fn collect_controls(&mut self, unit: &UnitEvents, routed: &Routed) {
        if let Some(running) = &routed.running {
            self.tell(running, unit.unit, |told| told.schema.extend(unit.schema.iter().cloned()));
        }
        for node in &routed.restarted {
            self.tell(&Audience::from([*node]), unit.unit, |told| {
                told.reset = true;
                told.schema.extend(unit.whole_schema.iter().cloned());
            });
        }
        for (mark, node) in unit.marks.iter().zip(&routed.marked) {
            if let Some(node) = node {
                self.tell(&Audience::from([*node]), unit.unit, |told| told.marks.push(mark.mark.clone()));
            }
        }
        for (event, node) in unit.confirms.iter().zip(&routed.confirmed) {
            if let Some(node) = node {
                self.confirm(*node, unit.unit, &event.confirm);
            }
        }
    }

    /// Adds what became of a unit of a node. There may be as many confirms as operations, so they count as such.
    fn confirm(&mut self, node: NodeIndex, unit: TxnId, confirm: &Confirm) {
        let audience = Audience::from([node]);
        self.tell(&audience, unit, |told| told.confirms.push(confirm.clone()));
        if let Some(bucket) = self.bucket_ids.get(&audience).and_then(|bucket| self.buckets.get_mut(*bucket)) {
            bucket.operations += 1;
        }
        let bytes = confirm.size();
        (self.bytes, self.held, self.operations) = (self.bytes + bytes, self.held + bytes, self.operations + 1);
    }

    fn tell(&mut self, audience: &Audience, unit: TxnId, tell: impl FnOnce(&mut UnitControls)) {
        if audience.is_empty() {
            return;
        }
        let bucket = self.bucket(audience);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            tell(bucket.controls.entry(unit).or_default());
        }
    }

    fn heading(&mut self, table: &TableHeading) -> usize {
        if let Some(heading) = self.heading_ids.get(table) {
            return *heading;
        }
        self.headings.push(table.clone());
        self.heading_ids.insert(table.clone(), self.headings.len() - 1);
        self.headings.len() - 1
    }

    fn bucket(&mut self, audience: &Audience) -> usize {
        if let Some(bucket) = self.bucket_ids.get(audience) {
            return *bucket;
        }
        self.buckets.push(Bucket {
            audience: audience.clone(),
            operations: 0,
            aside: Vec::new(),
            entries: Vec::new(),
            bytes: Vec::new(),
            controls: BTreeMap::new(),
        });
        self.bucket_ids.insert(audience.clone(), self.buckets.len() - 1);
        self.buckets.len() - 1
    }

    /// Puts what was collected aside if it is more than memory should hold. May be called in the middle of a unit.
    ///
    /// # Errors
    /// The disk, or an operation that does not fit into a frame.
    pub(crate) fn put_aside(&mut self, sealer: &mut Sealer, spool: &mut FrameSpool) -> Result<(), AsideError> {
        if self.held < self.limits.held_bytes_max {
            return Ok(());
        }
        for index in 0..self.buckets.len() {
            let sealed = self.frames(&[index], sealer)?;
            let Some(bucket) = self.buckets.get_mut(index) else { continue };
            for frame in sealed {
                bucket.aside.push(Arc::new(spool.add(Arc::unwrap_or_clone(frame))?));
            }
            // The memory goes too: other audiences may need it next.
            (bucket.entries, bucket.bytes) = (Vec::new(), Vec::new());
            bucket.controls.clear();
        }
        self.held = 0;
        Ok(())
    }

    /// Returns whether the round is to be closed after the unit that was added last.
    pub(crate) fn is_full(&mut self) -> bool {
        if self.bytes >= self.limits.round_bytes_goal {
            return true;
        }
        if self.operations < self.count_at {
            return false;
        }
        let mut counts: HashMap<NodeIndex, u64> = HashMap::new();
        for bucket in &self.buckets {
            for node in bucket.audience.iter() {
                *counts.entry(*node).or_default() += bucket.operations;
            }
        }
        let most = counts.into_values().max().unwrap_or_default();
        // Even if every further operation goes to that node, it takes this many more.
        self.count_at = self.operations + self.limits.file_operations_goal.saturating_sub(most);
        most >= self.limits.file_operations_goal
    }

    /// Makes the files of the round: one for each node that is active at its end and gets anything, sorted by node.
    /// `stream` returns the node's stream as of the round's start, or as begun within it.
    pub(crate) fn plan(
        &self,
        range: RoundRange,
        nodes: &NodeKeys,
        stream: impl Fn(&NodeName, Incarnation) -> Option<Stream>,
        sealer: &mut Sealer,
    ) -> Result<Vec<PlannedFile>, DxError> {
        let mut of_node: BTreeMap<&NodeName, (Incarnation, Vec<usize>)> = BTreeMap::new();
        let mut shared: Vec<Vec<Arc<SealedFrame>>> = Vec::with_capacity(self.buckets.len());
        for (index, bucket) in self.buckets.iter().enumerate() {
            let several = bucket.audience.len() > 1 && bucket.bytes.len() >= self.limits.shared_frame_bytes_min;
            shared.push(if several { self.frames(&[index], sealer)? } else { Vec::new() });
            for node in bucket.audience.iter() {
                // A node that ended since gets nothing of this round.
                if let Some((name, incarnation)) = nodes.node(*node) {
                    of_node.entry(name).or_insert_with(|| (incarnation, Vec::new())).1.push(index);
                }
            }
        }
        let mut planned = Vec::with_capacity(of_node.len());
        for (node, (incarnation, buckets)) in of_node {
            let stream = stream(node, incarnation)
                .ok_or_else(|| DxError::Content(format!("node {node} is routed to, but has no stream of incarnation {incarnation}")))?;
            let mut frames = Vec::new();
            let mut own = Vec::new();
            for bucket in buckets {
                let aside = self.buckets.get(bucket).map(|bucket| bucket.aside.as_slice()).unwrap_or_default();
                frames.extend(aside.iter().cloned().map(PlannedFrame::Aside));
                match shared.get(bucket) {
                    Some(sealed) if !sealed.is_empty() => frames.extend(sealed.iter().cloned().map(PlannedFrame::Held)),
                    _ => own.push(bucket),
                }
            }
            let header = Header {
                direction: DxDirection::Download,
                server_id: range.server_id,
                epoch: range.epoch,
                node: Some(node.clone()),
                incarnation,
                file_no: stream.last_file.next(),
                first: TxnId(stream.last_unit.0 + 1),
                last: range.upto,
                revision: range.revision,
                previous: stream.last_hash,
                install_id: Default::default(),
                applied_unit: TxnId(0),
            };
            planned.push((PlannedFile { header, node: node.clone(), frames }, own));
        }
        self.seal(planned, sealer)
    }

    /// Adds to each file the frames that only it has: one pass decided who gets what, and many hands compress it.
    fn seal(&self, planned: Vec<(PlannedFile, Vec<usize>)>, sealer: &mut Sealer) -> Result<Vec<PlannedFile>, DxError> {
        let seal_all = |planned: Vec<(PlannedFile, Vec<usize>)>, sealer: &mut Sealer| -> Result<Vec<PlannedFile>, DxError> {
            let mut files = Vec::with_capacity(planned.len());
            for (mut file, own) in planned {
                file.frames.extend(self.frames(&own, sealer)?.into_iter().map(PlannedFrame::Held));
                files.push(file);
            }
            Ok(files)
        };
        if planned.len() < 2 * ROUTER_FILES_PER_THREAD_MIN {
            return seal_all(planned, sealer);
        }
        let sealer = &*sealer;
        let runs = in_runs(planned, ROUTER_FILES_PER_THREAD_MIN, |run| seal_all(run, &mut sealer.another()?))?;
        Ok(runs.into_iter().flatten().collect())
    }

    /// Returns frames of these buckets, merged by unit.
    fn frames(&self, buckets: &[usize], sealer: &mut Sealer) -> Result<Vec<Arc<SealedFrame>>, DxError> {
        let buckets = || buckets.iter().filter_map(|index| self.buckets.get(*index));
        let mut controls: BTreeMap<TxnId, UnitControls> = BTreeMap::new();
        for (unit, told) in buckets().flat_map(|bucket| &bucket.controls) {
            controls.entry(*unit).or_default().merge(told);
        }
        let mut entries: Vec<(&Entry, &[u8])> = buckets()
            .flat_map(|bucket| bucket.entries.iter().map(|entry| (entry, bucket.bytes.get(entry.operation.clone()).unwrap_or_default())))
            .collect();
        // Stable: within a unit the order is that of buckets and rows.
        entries.sort_by_key(|(entry, _)| entry.unit);
        let mut builder = FrameBuilder::new();
        for (entry, operation) in entries {
            while let Some((unit, told)) = controls.first_key_value().filter(|(unit, _)| **unit <= entry.unit) {
                builder.controls(*unit, told)?;
                controls.pop_first();
            }
            if let Some(heading) = self.headings.get(entry.heading) {
                builder.operation(entry.unit, heading, operation)?;
            }
        }
        for (unit, told) in controls {
            builder.controls(unit, &told)?;
        }
        builder.finish(sealer)
    }
}

pub(crate) fn operation_of(event: &RowEvent, action: Action) -> Result<OperationView<'_>, DxError> {
    let gone = || DxError::Content("the row is gone, but a node should get it".to_owned());
    Ok(match action {
        Action::Delete => OperationView::Delete { key: &event.key },
        Action::Put => OperationView::Put { row: event.row.as_ref().ok_or_else(gone)? },
        Action::Update => {
            let row = event.row.as_ref().ok_or_else(gone)?;
            let value = |column: &u16| {
                let value = row.get(usize::from(*column));
                Ok((*column, value.ok_or_else(|| DxError::Content(format!("changed column {column} is not in the row")))?))
            };
            OperationView::Update { key: &event.key, changes: event.changed.iter().map(value).collect::<Result<_, DxError>>()? }
        }
    })
}

/// Returns a node event with its keys spelled out. Indices were checked when the unit was routed.
fn change_of(unit: &UnitEvents, event: &NodeEvent) -> NodeChange {
    let keys = |keys: &[u32]| -> Vec<ScopeKey> { keys.iter().filter_map(|key| unit.keys.get(*key as usize)).cloned().collect() };
    match event {
        NodeEvent::Start { node, incarnation, keys: all } => {
            NodeChange::Started { node: node.clone(), incarnation: *incarnation, unit: unit.unit, keys: keys(all) }
        }
        NodeEvent::Restart { node, incarnation, keys: all } => {
            NodeChange::Started { node: node.clone(), incarnation: *incarnation, unit: before(unit.unit), keys: keys(all) }
        }
        NodeEvent::Stop { node } => NodeChange::Stopped { node: node.clone() },
        NodeEvent::Keys { node, gained, lost } => NodeChange::Keys { node: node.clone(), gained: keys(gained), lost: keys(lost) },
    }
}

/// Returns the position before a unit's: a stream that begins with the unit begins after it.
pub(crate) fn before(unit: TxnId) -> TxnId {
    TxnId(unit.0 - 1)
}

/// Returns the stream of a node that begins after `unit`.
pub(crate) fn new_stream(node: NodeName, incarnation: Incarnation, unit: TxnId) -> Stream {
    Stream { node, incarnation, active: true, start_unit: unit, last_file: FileNo(0), last_unit: unit, last_hash: Default::default() }
}
