//! How `status` looks: one line for the stages, one per node, and for each thing that needs a person the command to type.

use crate::base::clock::now_seconds;
use crate::cds::compare::Reconciled;
use crate::cli::output::{ago, bytes, count, some, table};
use crate::server::status::{Light, NodeCondition, NodeStatus, ServerStatus};
use serde_json::{Value as Json, json};

/// Returns the status of the server as text.
pub fn server_text(status: &ServerStatus) -> String {
    let mut lines = vec![stages(status)];
    for need in &status.needs {
        lines.push(format!("! {}: {}", need.what, need.command));
    }
    for of in &status.unreadable_dates {
        let rows = some(of.rows, "row has", "rows have");
        lines.push(format!("table {}: {rows} no readable date in {}, and stay inside the window", of.table, of.column));
    }
    for of in &status.reconciled {
        lines.push(comparison(of));
    }
    if !status.nodes.is_empty() {
        let headings = ["node", "state", "last sync", "to node", "needs a person"];
        let rows = status.nodes.iter().flat_map(node_rows).collect();
        lines.push(table(&headings, rows, &[]));
    } else if status.revision.is_some() {
        lines.push("no nodes yet: dockmaster node add NAME".to_owned());
    }
    match status.nodes_in_need() {
        0 => {}
        1 => lines.push("1 node needs a person.".to_owned()),
        several => lines.push(format!("{several} nodes need a person.")),
    }
    lines.join("\n")
}

fn comparison(of: &Reconciled) -> String {
    let parts = [(of.found.missing, "missing"), (of.found.extra, "extra"), (of.found.different, "different")];
    let parts: Vec<String> =
        parts.iter().filter(|(rows, _)| *rows > 0).map(|(rows, what)| format!("{} {what}", count(rows.cast_signed()))).collect();
    format!(
        "table {} was put right at unit {} ({}): {}; {}",
        of.table,
        count(of.unit),
        ago(now_seconds() - of.at),
        parts.join(", "),
        of.reason
    )
}

fn stages(status: &ServerStatus) -> String {
    // A light that is not green by a need is so by a lag or by the disk, which stand in the line themselves.
    let well = match status.light() {
        Light::Green => "ok".to_owned(),
        light if status.needs.is_empty() => light.to_string(),
        light => format!("{light}, needs a person"),
    };
    let mut parts = vec![format!("{} {well}", status.server_name)];
    if let Some(revision) = status.revision {
        parts.push(format!("revision {revision}"));
    }
    if let Some(log) = status.log {
        parts.push(format!("log {}", count(log.0)));
        let behind = |position: Option<crate::base::ids::TxnId>| match position {
            None => "has not run".to_owned(),
            Some(position) if position >= log => count(position.0),
            Some(position) => format!("{} ({} behind)", count(position.0), count(log.0 - position.0)),
        };
        parts.push(format!("txnproc {}", behind(status.txnproc)));
        parts.push(format!("router {}", behind(status.router)));
    }
    if let Some(free) = status.free_bytes {
        parts.push(format!("disk {} free", bytes(free)));
    }
    parts.join("   ")
}

/// One row for the node; a row more for each further thing that needs a person.
fn node_rows(node: &NodeStatus) -> Vec<Vec<String>> {
    let heard = match (node.condition, node.heard_ago) {
        (NodeCondition::Watching, _) => "now".to_owned(),
        (_, Some(seconds)) => ago(seconds),
        (_, None) => "-".to_owned(),
    };
    let waiting = match node.to_node.files {
        0 => "-".to_owned(),
        files => format!("{}  {}", some(files, "file", "files"), bytes(node.to_node.bytes)),
    };
    let mut needs = node.needs.iter().map(|need| format!("{}: {}", need.what, need.command));
    let first = vec![node.node.to_string(), node.condition.to_string(), heard, waiting, needs.next().unwrap_or_default()];
    let mut rows = vec![first];
    rows.extend(needs.map(|need| vec![String::new(), String::new(), String::new(), String::new(), need]));
    rows
}

/// Returns the status of the server as JSON.
pub fn server_json(status: &ServerStatus) -> Json {
    let needs = |needs: &[crate::server::status::Need]| -> Json {
        needs
            .iter()
            .map(|need| json!({ "what": need.what, "command": need.command, "level": need.level.to_string() }))
            .collect::<Vec<_>>()
            .into()
    };
    let nodes: Vec<Json> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "node": node.node.as_str(), "state": node.condition.to_string(), "incarnation": node.incarnation.0,
                "applied": node.applied.map(|unit| unit.0), "applied_file": node.applied_file.map(|file| file.0),
                "received_file": node.received.map(|file| file.0), "routed_file": node.routed.map(|(file, _)| file.0),
                "routed": node.routed.map(|(_, unit)| unit.0), "heard_seconds_ago": node.heard_ago,
                "waiting": { "files": node.to_node.files, "bytes": node.to_node.bytes, "operations": node.to_node.operations },
                "units": node.units.iter().map(|(status, units)| (status.name().to_owned(), Json::from(*units))).collect::<serde_json::Map<_, _>>(),
                "needs": needs(&node.needs),
            })
        })
        .collect();
    json!({
        "server": status.server_name, "revision": status.revision.map(|revision| revision.0),
        "log": status.log.map(|position| position.0), "txnproc": status.txnproc.map(|position| position.0),
        "router": status.router.map(|position| position.0), "free_bytes": status.free_bytes, "light": status.light().to_string(), "sessions": status.sessions_begun,
        "nodes": nodes, "needs": needs(&status.needs), "reconciled": status.reconciled,
        "unreadable_dates": status.unreadable_dates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{Incarnation, Revision, TxnId};
    use crate::docking::backlog::Backlog;
    use crate::server::status::Need;

    fn node(name: &str, condition: NodeCondition, heard_ago: Option<i64>, files: u64) -> NodeStatus {
        NodeStatus {
            node: name.parse().unwrap(),
            condition,
            incarnation: Incarnation(1),
            applied: Some(TxnId(7)),
            routed: None,
            received: None,
            applied_file: None,
            heard_ago,
            units: Default::default(),
            to_node: Backlog { files, bytes: files * 1_400, operations: files },
            needs: Vec::new(),
        }
    }

    fn status() -> ServerStatus {
        let mut lost = node("SHOP-05", NodeCondition::Stopped, Some(300), 7);
        lost.needs = vec![Need {
            key: "alert".into(),
            level: Light::Red,
            what: "two copies of this node".into(),
            command: "dockmaster node show SHOP-05".into(),
        }];
        ServerStatus {
            server_name: "HQ".into(),
            revision: Some(Revision(3)),
            log: Some(TxnId(184_220)),
            txnproc: Some(TxnId(184_220)),
            router: Some(TxnId(184_200)),
            free_bytes: Some(41_000_000_000),
            sessions_begun: None,
            nodes: vec![node("SHOP-01", NodeCondition::Watching, Some(3), 0), node("SHOP-02", NodeCondition::Ok, Some(720), 3), lost],
            needs: Vec::new(),
            unreadable_dates: Vec::new(),
            reconciled: Vec::new(),
        }
    }

    #[test]
    fn status_reads_as_drawn() {
        let drawn = "\
HQ red   revision 3   log 184,220   txnproc 184,220   router 184,200 (20 behind)   disk 41 GB free
NODE     STATE     LAST SYNC  TO NODE          NEEDS A PERSON
SHOP-01  watching  now        -
SHOP-02  ok        12 min     3 files  4.2 kB
SHOP-05  stopped   5 min      7 files  9.8 kB  two copies of this node: dockmaster node show SHOP-05
1 node needs a person.";
        assert_eq!(server_text(&status()), drawn);
    }

    #[test]
    fn what_is_not_there_yet_is_said() {
        let mut early = status();
        (early.nodes, early.txnproc, early.router) = (Vec::new(), None, None);
        let text = server_text(&early);
        assert!(text.contains("txnproc has not run") && text.contains("no nodes yet: dockmaster node add"), "{text}");
    }

    #[test]
    fn json_says_the_same() {
        let json = server_json(&status());
        assert_eq!(json["router"], 184_200);
        assert_eq!(json["nodes"][2]["needs"][0]["command"], "dockmaster node show SHOP-05");
        assert_eq!(json["nodes"][1]["waiting"]["files"], 3);
    }
}
