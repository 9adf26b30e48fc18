//! What a node sends up, and what the server answers: units of local changes, and confirms (architecture 3.4, 3.5).

use crate::base::ids::{InstallId, Revision, TxnId, UnitNo};
use crate::model::value::{Row, RowKey, Value};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The permanent name of a unit: the Merger executes each once, for ever (R16). It survives files, sessions and extracts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitId {
    /// The local database that cut it.
    pub install: InstallId,
    /// Its number there.
    pub number: UnitNo,
}

/// The head of a unit: everything but its changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadHead {
    /// Its number, from 1, in the order of the user's actions (MI-51).
    pub number: UnitNo,
    /// Last unit of the server that the local database had applied when this one was cut: what was seen of confirms (R12).
    pub applied: TxnId,
    /// Definition in force then.
    pub revision: Revision,
    /// When it was cut, microseconds since 1970, by the node's clock. For people only (I6).
    pub cut_at_micros: i64,
    /// Label of the `dock_txn_mark` pair that it lies in.
    pub label: Option<String>,
    /// Units of this local database that were suspended when it was cut: the rows that they inserted were not shown, so a key that
    /// stands in this unit means the server's row (R12, R20).
    pub hidden: Vec<UnitNo>,
    /// How many changes follow.
    pub changes: u64,
}

/// One unit with its changes. A unit names a row once at most (by its key before, or after if it was inserted).
#[derive(Debug, Clone, PartialEq)]
pub struct UploadUnit {
    /// Its head.
    pub head: UploadHead,
    /// The changes, in the order in which rows were first touched, each with the table's name and column names.
    pub changes: Vec<(std::sync::Arc<crate::model::event::TableHeading>, RowChange)>,
}

/// The net change of one row between two cuts (R3). Columns are indices into the heading, which lists the columns that the node has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RowChange {
    /// The row is new: all its columns.
    Insert {
        /// Values in heading order.
        row: Row,
    },
    /// Some columns changed. A key change is one too: then key columns are among the fields.
    Update {
        /// Key before.
        key: RowKey,
        /// What changed.
        fields: Vec<FieldChange>,
        /// The whole row after, if the table says that an update brings a deleted row back (`resurrect`).
        whole: Option<Row>,
    },
    /// The row is gone.
    Delete {
        /// Key before.
        key: RowKey,
        /// The row before.
        before: Row,
        /// The server's row as the node knew it, if that is another one.
        base: Option<Row>,
    },
}

impl RowChange {
    /// Returns the key under which the server knows the row; of an inserted row that is its own.
    pub fn key(&self, heading_key: &[u16]) -> RowKey {
        match self {
            RowChange::Insert { row } => heading_key.iter().filter_map(|index| row.get(usize::from(*index))).cloned().collect(),
            RowChange::Update { key, .. } | RowChange::Delete { key, .. } => key.clone(),
        }
    }
}

/// One changed column. A field conflicts iff the server's value is none of the three (R29).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The column.
    pub column: u16,
    /// Value before this unit: with the node's earlier pending units.
    pub before: Value,
    /// The server's value as the node knew it when the unit was cut.
    pub base: Value,
    /// Value after this unit.
    pub after: Value,
}

/// What became of a unit on the server: a record of the node's stream, committed with the merge (R30).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// The unit.
    pub unit: UnitId,
    /// What became of it.
    pub outcome: Outcome,
}

impl Confirm {
    /// Returns about how many bytes it takes in memory, which is more than in a file: a reader bounds both.
    pub fn size(&self) -> usize {
        64 + match &self.outcome {
            Outcome::Merged { conflicts, keys } => {
                let of_key = |mapping: &KeyMapping| {
                    size_of::<KeyMapping>() + mapping.table.len() + size_of_values(&mapping.old) + size_of_values(&mapping.new)
                };
                conflicts.iter().map(Conflict::size).sum::<usize>() + keys.iter().map(of_key).sum::<usize>()
            }
            Outcome::Held { reason } | Outcome::Ignored { reason } | Outcome::Returned { reason } => reason.len(),
        }
    }

    /// Takes out what makes it larger than `limit`: the largest values first, for which a text says where they are, then whole conflicts,
    /// which one says are on the server. Keys and reason stay.
    pub fn fit(&mut self, limit: usize) {
        let mut size = self.size();
        let Outcome::Merged { conflicts, .. } = &mut self.outcome else { return };
        if size <= limit {
            return;
        }
        for floor in [1 << 20, 64 << 10, 4 << 10, 256] {
            for conflict in conflicts.iter_mut() {
                let id = conflict.id;
                for value in [&mut conflict.base, &mut conflict.server, &mut conflict.client].into_iter().flatten() {
                    let bytes = value.size();
                    if size > limit && bytes > floor {
                        *value = Value::text(&format!("({bytes} bytes: see conflict {id} on the server)"));
                        size = size - bytes + value.size();
                    }
                }
            }
        }
        if size > limit {
            // Room for the one that says so.
            let mut out = 0;
            while size + 2 * size_of::<Conflict>() > limit
                && let Some(last) = conflicts.pop()
            {
                size -= last.size();
                out += 1;
            }
            conflicts.push(Conflict::more(out));
        }
    }
}

/// What became of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is in the server database; the official values precede the confirm in the stream.
    Merged {
        /// Fields and rows where another change won or lost.
        conflicts: Vec<Conflict>,
        /// Keys that had to change (R12).
        keys: Vec<KeyMapping>,
    },
    /// The server refused it and a person has to decide: it stays pending on the node (MI-61).
    Held {
        /// Why.
        reason: String,
    },
    /// A person took it out: it is not executed (MI-62).
    Ignored {
        /// Why.
        reason: String,
    },
    /// It goes back to its author, who may correct it and send it again.
    Returned {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// Whether nothing more will happen to the unit, so that the node takes it out.
    pub fn is_final(&self) -> bool {
        !matches!(self, Outcome::Held { .. })
    }

    /// Returns the one spelling for lists, logs and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Merged { .. } => "merged",
            Outcome::Held { .. } => "held",
            Outcome::Ignored { .. } => "ignored",
            Outcome::Returned { .. } => "returned",
        }
    }
}

/// A unit that nothing more happens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedUnit {
    /// The unit.
    pub unit: UnitId,
    /// Name of its outcome, as [`Outcome::name`].
    pub outcome: String,
}

/// One conflict, as recorded on the server and told to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Number on the server.
    pub id: i64,
    /// The table.
    pub table: String,
    /// The row.
    pub key: RowKey,
    /// The column; `None` = the whole row (delete against update, out of view).
    pub column: Option<String>,
    /// The server's value as the node knew it.
    pub base: Option<Value>,
    /// The server's value when the unit was merged.
    pub server: Option<Value>,
    /// The node's value.
    pub client: Option<Value>,
    /// Whose value stands now.
    pub winner: Winner,
    /// What decided: a policy's name, `delete-wins`, `out-of-view`, ...
    pub rule: String,
    /// When, microseconds since 1970, by the server's clock.
    pub at_micros: i64,
}

impl Conflict {
    /// Returns the entry that stands for so many others, which are not told.
    pub fn more(count: usize) -> Conflict {
        Conflict {
            id: 0,
            table: String::new(),
            key: Vec::new(),
            column: None,
            base: None,
            server: None,
            client: None,
            winner: Winner::Server,
            rule: format!("{count} more conflicts are listed on the server"),
            at_micros: 0,
        }
    }

    fn size(&self) -> usize {
        let value = |value: &Option<Value>| value.as_ref().map_or(0, |value| size_of::<Value>() + value.size());
        let texts = self.table.len() + self.rule.len() + self.column.as_ref().map_or(0, String::len);
        size_of::<Conflict>() + texts + size_of_values(&self.key) + value(&self.base) + value(&self.server) + value(&self.client)
    }
}

fn size_of_values(values: &[Value]) -> usize {
    values.iter().map(|value| size_of::<Value>() + value.size()).sum()
}

/// Whose value stands after a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Winner {
    /// The server's.
    Server,
    /// The node's.
    Client,
    /// Both: differences were added.
    Both,
    /// The server's for now; a person decides (`manual`).
    Open,
}

impl fmt::Display for Winner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Winner::Server => "server",
            Winner::Client => "client",
            Winner::Both => "both",
            Winner::Open => "open",
        })
    }
}

/// A key that a node gave and the server replaced, since another row has it (R12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMapping {
    /// The table.
    pub table: String,
    /// The key on the node.
    pub old: RowKey,
    /// The key on the server.
    pub new: RowKey,
}

/// Status of one unit on the server (MI-57 to MI-64). Legal transitions stand in [`MessageStatus::may_become`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageStatus {
    /// Stored in the inbox, not begun.
    Waiting,
    /// Being executed.
    Partial,
    /// Executed, conflicts included.
    Finished,
    /// Refused by the server, by a right, or since it depends on one that was.
    Error,
    /// Taken out by a person, or returned to its author.
    Ignored,
}

impl MessageStatus {
    /// Returns whether a unit may go from this status to that one. `by_person` = an administrator asks for it (MI-53, MI-63).
    pub fn may_become(self, next: MessageStatus, by_person: bool) -> bool {
        use MessageStatus::{Error, Finished, Ignored, Partial, Waiting};
        match (self, next) {
            (Waiting, Partial) | (Partial, Finished | Error | Waiting) => !by_person,
            (Waiting | Error, Ignored) | (Error, Waiting) => by_person,
            _ => false,
        }
    }

    /// Returns the one spelling.
    pub fn name(self) -> &'static str {
        match self {
            MessageStatus::Waiting => "waiting",
            MessageStatus::Partial => "partial",
            MessageStatus::Finished => "finished",
            MessageStatus::Error => "error",
            MessageStatus::Ignored => "ignored",
        }
    }

    /// Returns the status of that spelling.
    pub fn from_name(name: &str) -> Option<MessageStatus> {
        [Self::Waiting, Self::Partial, Self::Finished, Self::Error, Self::Ignored].into_iter().find(|status| status.name() == name)
    }
}

impl fmt::Display for MessageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::MessageStatus::{Error, Finished, Ignored, Partial, Waiting};

    #[test]
    fn mi57_mi63_only_legal_transitions_exist() {
        let all = [Waiting, Partial, Finished, Error, Ignored];
        let by_itself = [(Waiting, Partial), (Partial, Finished), (Partial, Error), (Partial, Waiting)];
        let by_person = [(Waiting, Ignored), (Error, Ignored), (Error, Waiting)];
        for from in all {
            for to in all {
                assert_eq!(from.may_become(to, false), by_itself.contains(&(from, to)), "{from} {to}");
                assert_eq!(from.may_become(to, true), by_person.contains(&(from, to)), "{from} {to} by a person");
            }
        }
    }
}
