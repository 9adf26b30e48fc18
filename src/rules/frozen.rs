//! What stands still when the capture of a table is in doubt.
//!
//! A node must not get half an object, nor rows chosen by a link table that is no longer followed: that could show what
//! was taken away meanwhile. So with a stopped table stand still the other tables of its objects, and every table whose
//! rules lead through one of these. They keep the state in which they stopped, at the server's data store and on the
//! nodes; all others go on (capture, `architecture` 4).

use crate::model::dock::{AttributeSource, Dock, TableIndex};
use crate::rules::graph::{ScopeGraph, Source};
use std::collections::BTreeSet;

/// Returns the tables that stand still with the stopped ones, these included.
pub fn frozen(dock: &Dock, graph: &ScopeGraph, stopped: &BTreeSet<TableIndex>) -> BTreeSet<TableIndex> {
    let mut frozen = stopped.clone();
    if frozen.is_empty() {
        return frozen;
    }
    loop {
        let before = frozen.len();
        for object in &dock.objects {
            let tables = || object.members.iter().chain([&object.table]);
            if tables().any(|table| frozen.contains(table)) {
                frozen.extend(tables());
            }
        }
        let attributes = doubtful_attributes(dock, &frozen);
        // Vertices are in topological order: whatever one reads was judged before it.
        let mut doubtful = Vec::with_capacity(graph.vertices.len());
        for vertex in &graph.vertices {
            let by_input = vertex.inputs.iter().any(|input| match &input.source {
                Source::Base { .. } => false,
                Source::Follow { vertex, .. } => doubtful.get(*vertex).copied().unwrap_or(false),
                Source::Junction { junction, .. } => {
                    graph.junctions.get(*junction).is_some_and(|junction| doubtful.get(junction.source).copied().unwrap_or(false))
                }
            });
            let by_node = vertex
                .paths
                .iter()
                .any(|path| graph.paths.get(*path).and_then(|path| path.attribute).is_some_and(|at| attributes.contains(&at)));
            doubtful.push(frozen.contains(&vertex.table) || by_input || by_node);
        }
        for (table, vertex) in graph.visible.iter().enumerate() {
            if vertex.is_some_and(|vertex| doubtful.get(vertex).copied().unwrap_or(false)) {
                frozen.insert(table);
            }
        }
        if frozen.len() == before {
            return frozen;
        }
    }
}

/// Returns the node attributes whose derivation reads one of the tables.
fn doubtful_attributes(dock: &Dock, tables: &BTreeSet<TableIndex>) -> BTreeSet<usize> {
    let mut doubtful = BTreeSet::new();
    for (number, attribute) in dock.attributes.iter().enumerate() {
        if let AttributeSource::Derived { from, hops } = &attribute.source
            && (doubtful.contains(from) || hops.iter().any(|hop| tables.contains(&hop.hop.table)))
        {
            doubtful.insert(number);
        }
    }
    doubtful
}
