//! All positions, lags and counts as Prometheus text, from the same look that `status` takes: the two cannot disagree (H5).

use super::status::{Light, NodeCondition, NodeStatus, ServerStatus};
use crate::model::upload::MessageStatus;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: String,
}

/// Returns the figures of a status in the OpenMetrics text format. What is not known is left out, never 0.
///
/// # Errors
/// None that is known: writing to memory does not fail.
pub fn text(status: &ServerStatus) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("dockmaster");
    let mut one = |name: &str, help: &str, value: Option<i64>| {
        if let Some(value) = value {
            let gauge = Gauge::<i64>::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        }
    };
    let behind = |position: Option<crate::base::ids::TxnId>| Some(status.log?.0 - position?.0);
    one("log_position", "End of the server's log", status.log.map(|position| position.0));
    one("txnproc_position", "Last unit that the Transaction Processor has read", status.txnproc.map(|position| position.0));
    one("router_position", "Last unit that the Transaction Router has routed", status.router.map(|position| position.0));
    one("txnproc_lag", "Log rows that the Transaction Processor is behind", behind(status.txnproc));
    one("router_lag", "Log rows that the Transaction Router is behind", behind(status.router));
    one(
        "light",
        "0 green, 1 yellow, 2 red",
        Some(match status.light() {
            Light::Green => 0,
            Light::Yellow => 1,
            Light::Red => 2,
        }),
    );
    let needs = status.needs.len() + status.nodes.iter().map(|node| node.needs.len()).sum::<usize>();
    one("needs", "Things that wait for a person", Some(whole(needs as u64)));
    one("nodes_in_need", "Nodes that wait for a person", Some(whole(status.nodes_in_need() as u64)));
    one("sessions_begun", "Sessions ever begun by a known node, as far as their history is kept", status.sessions_begun.map(whole));
    if let Some(free) = status.free_bytes {
        let gauge = Gauge::<i64>::default();
        gauge.set(whole(free));
        registry.register_with_unit("disk_free", "Room on the disk of the docking root", Unit::Bytes, gauge);
    }
    let states = Family::<InState, Gauge<i64>>::default();
    for condition in NodeCondition::ALL {
        let nodes = status.nodes.iter().filter(|node| node.condition == condition).count();
        states.get_or_create(&InState { state: condition.to_string() }).set(whole(nodes as u64));
    }
    registry.register("nodes", "Nodes by state", states);
    of_nodes(&mut registry, &status.nodes);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

type Figure = (&'static str, &'static str, fn(&NodeStatus) -> Option<i64>);

const OF_NODE: [Figure; 13] = [
    ("node_routed_file", "Last file routed to the node", |node| node.routed.map(|(file, _)| whole(file.0))),
    ("node_routed_position", "Last unit in a file of the node", |node| node.routed.map(|(_, unit)| unit.0)),
    ("node_received_file", "Last file that lies durable in its inbox", |node| node.received.map(|file| whole(file.0))),
    ("node_applied_file", "Last file that it has applied", |node| node.applied_file.map(|file| whole(file.0))),
    ("node_applied_position", "Last unit that it has applied", |node| node.applied.map(|unit| unit.0)),
    ("node_waiting_files", "Files that it has not applied", |node| Some(whole(node.to_node.files))),
    ("node_waiting_bytes", "Bytes of these files", |node| Some(whole(node.to_node.bytes))),
    ("node_waiting_operations", "Operations in these files", |node| Some(whole(node.to_node.operations))),
    ("node_heard_seconds_ago", "Seconds since it was heard", |node| node.heard_ago),
    ("node_units_waiting", "Units of the node that wait to be merged", |node| {
        units(node, &[MessageStatus::Waiting, MessageStatus::Partial])
    }),
    ("node_units_error", "Units of the node in error", |node| units(node, &[MessageStatus::Error])),
    ("node_units_done", "Units of the node that are finished or ignored", |node| {
        units(node, &[MessageStatus::Finished, MessageStatus::Ignored])
    }),
    ("node_needs", "Things of the node that wait for a person", |node| Some(whole(node.needs.len() as u64))),
];

fn of_nodes(registry: &mut Registry, nodes: &[NodeStatus]) {
    for (name, help, figure) in OF_NODE {
        let family = Family::<OfNode, Gauge<i64>>::default();
        for node in nodes {
            if let Some(value) = figure(node) {
                family.get_or_create(&OfNode { node: node.node.to_string() }).set(value);
            }
        }
        registry.register(name, help, family);
    }
}

fn units(node: &NodeStatus, of: &[MessageStatus]) -> Option<i64> {
    Some(whole(of.iter().filter_map(|status| node.units.get(status)).sum()))
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
