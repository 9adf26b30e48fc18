//! What travels in the log beside rows: every other input of routing, in commit order with the data (R28).
//!
//! A control is one log row (`tbl` 0, `op` `C`, `c1` the JSON of [`Control`]), written in the transaction of the change that
//! it tells of. So a Router that lags, or that runs again after a crash, sees the same inputs at the same places.

use crate::base::ids::{NodeName, Revision};
use crate::model::digest::BucketChoice;
use crate::model::node::Node;
use crate::model::upload::Confirm;
use serde::{Deserialize, Serialize};

/// A log row that is not a change of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// The full state of a node after any change of it: added, attributes set, started, disabled, enabled.
    ///
    /// The node's stream begins anew when it is active with an incarnation greater than the one known before.
    Node {
        /// What it is from here on.
        node: Node,
        /// What it was before; `None` if it is new. A data store that is rebuilt rolls nodes back by it (R26).
        before: Option<Node>,
    },
    /// The node was deleted.
    NodeDeleted {
        /// Its name.
        name: NodeName,
        /// What it was before.
        before: Option<Node>,
    },
    /// That definition is in force from here on; its text stands in `dock_definition`.
    Definition {
        /// Number of the definition.
        revision: Revision,
    },
    /// Tables are to be compared with the data store: what capture missed becomes part of the unit that holds this (R6).
    Reconcile {
        /// Names of the tables; empty = every captured table.
        tables: Vec<String>,
        /// Why, for people.
        reason: String,
    },
    /// A node is to compare itself with what it should see at this place (R42).
    Verify {
        /// The node.
        node: NodeName,
        /// Number of the question, drawn by who asks.
        id: u64,
        /// The buckets whose rows are listed; empty = the first round, over all tables.
        choice: Vec<BucketChoice>,
    },
    /// What became of a unit of a node, in the transaction that decided it (R30).
    Confirm {
        /// The node that sent it.
        node: NodeName,
        /// What became of it. Written in the encoding of the files, in hex: JSON would blur values.
        #[serde(with = "confirm_hex")]
        confirm: Confirm,
    },
    /// A day began, for time windows.
    Tick {
        /// Days since 1970-01-01.
        day: i64,
    },
}

/// A confirm as text. One that is over [`CONFIRM_BYTES_MAX`] is made to fit.
mod confirm_hex {
    use crate::base::limits::CONFIRM_BYTES_MAX;
    use crate::dx::codec;
    use crate::model::upload::Confirm;
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(confirm: &Confirm, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fitting = confirm.clone();
        fitting.fit(CONFIRM_BYTES_MAX);
        let bytes = codec::encode("confirm", &fitting).map_err(ser::Error::custom)?;
        if fitting.size() > CONFIRM_BYTES_MAX {
            // Too many keys: what nobody could read must not get into the log.
            codec::decode::<Confirm>("confirm", &bytes).map_err(ser::Error::custom)?;
        }
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Confirm, D::Error> {
        let bytes = hex::decode(String::deserialize(deserializer)?).map_err(de::Error::custom)?;
        codec::decode("confirm", &bytes).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{Incarnation, InstallId, UnitNo};
    use crate::base::limits::CONFIRM_BYTES_MAX;
    use crate::model::node::NodeState;
    use crate::model::upload::{Conflict, KeyMapping, Outcome, UnitId, Winner};
    use crate::model::value::Value;
    use std::collections::BTreeMap;

    /// Every value that JSON would blur.
    fn confirm() -> Confirm {
        let conflict = |base: Value, server, client| Conflict {
            id: 17,
            table: "t".into(),
            key: vec![Value::Text(vec![0xff, 0]), Value::Real(0.1)],
            column: Some("c".into()),
            base: Some(base),
            server,
            client,
            winner: Winner::Open,
            rule: "manual".into(),
            at_micros: -1,
        };
        let outcome = Outcome::Merged {
            conflicts: vec![
                conflict(Value::Real(-0.0), Some(Value::Real(f64::NEG_INFINITY)), Some(Value::Real(1.0))),
                conflict(Value::Real(9.007_199_254_740_993e-7), None, Some(Value::Blob(vec![0, 255]))),
                conflict(Value::Null, Some(Value::Integer(i64::MIN)), Some(Value::text("\u{2028}\0"))),
            ],
            keys: vec![KeyMapping { table: "t".into(), old: vec![Value::Integer(1)], new: vec![Value::Integer(i64::MAX)] }],
        };
        Confirm { unit: UnitId { install: InstallId([0xee; 16]), number: UnitNo(u64::MAX) }, outcome }
    }

    #[test]
    fn r30_a_confirm_too_large_for_its_record_tells_where_the_rest_is() {
        let written = |confirm: &Confirm| {
            let control = Control::Confirm { node: "ANNA".parse().unwrap(), confirm: confirm.clone() };
            let read = serde_json::from_str(&serde_json::to_string(&control).unwrap()).unwrap();
            let Control::Confirm { confirm, .. } = read else { panic!("another control") };
            confirm
        };
        let mut large = confirm();
        let Outcome::Merged { conflicts, .. } = &mut large.outcome else { panic!() };
        conflicts[0].server = Some(Value::Blob(vec![7; 20 << 20]));
        conflicts[1].client = Some(Value::Text(vec![b'x'; 20 << 20]));
        let read = written(&large);
        assert!(read.size() < CONFIRM_BYTES_MAX && read.size() > 16 << 20);
        let Outcome::Merged { conflicts: told, keys } = &read.outcome else { panic!() };
        assert_eq!((told.len(), keys.len()), (3, 1));
        assert_eq!(told[0].server, Some(Value::text("(20971523 bytes: see conflict 17 on the server)")));
        let Outcome::Merged { conflicts, .. } = &mut large.outcome else { panic!() };
        assert_eq!(told[1].client, conflicts[1].client);
        let one = Conflict { base: None, server: None, client: Some(Value::Integer(1)), ..conflicts[2].clone() };
        *conflicts = vec![one; 600_000];
        let read = written(&large);
        assert!(read.size() < CONFIRM_BYTES_MAX);
        let Outcome::Merged { conflicts: told, keys } = &read.outcome else { panic!() };
        let left = 600_000 - (told.len() - 1);
        assert_eq!(told.last().unwrap().rule, format!("{left} more conflicts are listed on the server"));
        assert!(told.len() > 50_000 && keys.len() == 1, "{}", told.len());
    }

    #[test]
    fn r28_controls_survive_the_log() {
        let node = Node {
            name: "ANNA".parse().unwrap(),
            state: NodeState::Active,
            incarnation: Incarnation(3),
            extracted: Incarnation(2),
            model: Some("sales".into()),
            attributes: BTreeMap::from([("employee".to_owned(), vec![Value::Integer(1), Value::Text(vec![0xff, 0])])]),
        };
        let controls = [
            Control::Node { node: node.clone(), before: None },
            Control::NodeDeleted { name: "ANNA".parse().unwrap(), before: Some(node) },
            Control::Definition { revision: Revision(2) },
            Control::Reconcile { tables: vec!["Orders".into()], reason: "a trigger was missing".into() },
            Control::Tick { day: 20_000 },
            Control::Confirm { node: "ANNA".parse().unwrap(), confirm: confirm() },
            Control::Verify {
                node: "ANNA".parse().unwrap(),
                id: u64::MAX,
                choice: vec![BucketChoice { table: "t".into(), bucket_count: 4, buckets: vec![3] }],
            },
        ];
        for control in controls {
            let text = serde_json::to_string(&control).unwrap();
            assert_eq!(serde_json::from_str::<Control>(&text).unwrap(), control, "{text}");
        }
    }
}
