//! Administration of nodes: what `dockmaster node ...` does.
//!
//! Every change is checked against the definition and the server database and committed, with its control, in one transaction: a
//! file of forty nodes is imported as a whole or not at all.

use super::identity::{self, IdentityError};
use crate::base::clock::now_seconds;
use crate::base::ids::{IdError, Incarnation, NodeName};
use crate::model::dock::{AttributeSource, AttributeType, Dock};
use crate::model::node::{Node, NodeState};
use crate::model::value::Value;
use crate::store::nodes::NodeWriter;
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::trust::keys::TrustError;
use crate::trust::token::{TOKEN_SECONDS, Token};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// What can be wrong with a change of a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The server database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The name breaks a rule.
    #[error(transparent)]
    Name(#[from] IdError),
    /// The identity of the server.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No random numbers.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The name is taken.
    #[error("node {name} exists already")]
    Exists {
        /// The name.
        name: NodeName,
    },
    /// No node has that name.
    #[error("node {name} is unknown")]
    Unknown {
        /// The name.
        name: NodeName,
    },
    /// The definition has no such model.
    #[error("node {name}: model `{model}` is not in the definition; it has {known}")]
    Model {
        /// The node.
        name: NodeName,
        /// The model asked for.
        model: String,
        /// The models that there are.
        known: String,
    },
    /// A value of an attribute is not possible.
    #[error("node {name}: attribute `{attribute}`: {reason}")]
    Attribute {
        /// The node.
        name: NodeName,
        /// The attribute.
        attribute: String,
        /// What is wrong.
        reason: String,
    },
    /// The node is in the wrong state for this.
    #[error("node {name} is {state}: {reason}")]
    State {
        /// The node.
        name: NodeName,
        /// Its state.
        state: NodeState,
        /// Why that does not go.
        reason: &'static str,
    },
    /// The CSV text cannot be read.
    #[error("{file}: {source}")]
    Csv {
        /// Name of the file.
        file: String,
        /// What is wrong.
        source: csv::Error,
    },
    /// The heading of a CSV file is wrong.
    #[error("{file}:1: {reason}")]
    CsvHeading {
        /// Name of the file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Lines of a CSV file are wrong; nothing was imported.
    #[error("{}", lines.iter().map(|(line, error)| format!("{file}:{line}: {error}")).collect::<Vec<_>>().join("\n"))]
    Import {
        /// Name of the file.
        file: String,
        /// Line numbers with what is wrong there.
        lines: Vec<(u64, NodeError)>,
    },
}

/// What an administrator sets of a node, as texts; `None` leaves a part as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// Routing model; `Some(None)` = every rule.
    pub model: Option<Option<String>>,
    /// Values by attribute; an empty list takes the attribute away.
    pub attributes: BTreeMap<String, Vec<String>>,
}

/// Registers a node. Nothing is routed to it until it is extracted.
///
/// # Errors
/// The name is taken, a setting does not fit the definition or the data, or the database refused.
pub fn add(database: &ServerDatabase, dock: &Dock, name: &NodeName, settings: &NodeSettings) -> Result<Node, NodeError> {
    database.change_nodes(|writer| add_in(writer, dock, name, settings))
}

/// A token, just made. It is shown once.
#[derive(Debug, Clone, Copy)]
pub struct GivenToken {
    /// The token.
    pub token: Token,
    /// Until when it may be used, in seconds since 1970.
    pub until: i64,
}

/// Gives a node a token; one that it had is good no more.
///
/// # Errors
/// The node is unknown, the server has no identity, or the database refused.
pub fn give_token(identity: &Path, database: &ServerDatabase, name: &NodeName) -> Result<GivenToken, NodeError> {
    let server = identity::known(identity, database)?;
    let token = Token::generate(server).map_err(|error| TrustError::Random(error.to_string()))?;
    let until = now_seconds() + TOKEN_SECONDS;
    match database.keep_token(name, &token.secret, until) {
        Err(StoreError::UnknownNode { name }) => Err(NodeError::Unknown { name }),
        kept => Ok(kept.map(|()| GivenToken { token, until })?),
    }
}

/// Returns every node, sorted by name.
///
/// # Errors
/// The database refused.
pub fn list(database: &ServerDatabase) -> Result<Vec<Node>, NodeError> {
    Ok(database.nodes()?)
}

/// Returns one node.
///
/// # Errors
/// It is unknown, or the database refused.
pub fn show(database: &ServerDatabase, name: &NodeName) -> Result<Node, NodeError> {
    database.node(name)?.ok_or_else(|| NodeError::Unknown { name: name.clone() })
}

/// Changes settings of a node. For an active one this is a change in its stream: rows enter and leave its view with it.
///
/// # Errors
/// The node is unknown, a setting does not fit the definition or the data, or the database refused.
pub fn set(database: &ServerDatabase, dock: &Dock, name: &NodeName, settings: &NodeSettings) -> Result<Node, NodeError> {
    change(database, name, |writer, node| apply(writer, dock, node, settings))
}

/// Ends a node: it is refused from now on and gets nothing. Doing it again changes nothing.
///
/// # Errors
/// The node is unknown, or the database refused.
pub fn disable(database: &ServerDatabase, name: &NodeName) -> Result<Node, NodeError> {
    change(database, name, |_, node| {
        node.state = NodeState::Disabled;
        Ok(())
    })
}

/// Takes a disabled node back. What it missed was not routed, so it is `registered` and needs a new extract.
///
/// # Errors
/// The node is unknown or not disabled, or the database refused.
pub fn enable(database: &ServerDatabase, name: &NodeName) -> Result<Node, NodeError> {
    change(database, name, |_, node| match node.state {
        NodeState::Disabled => {
            node.state = NodeState::Registered;
            Ok(())
        }
        state => Err(NodeError::State { name: node.name.clone(), state, reason: "only a disabled node is enabled" }),
    })
}

/// Takes a node out of the list.
///
/// # Errors
/// The node is unknown, or the database refused.
pub fn delete(database: &ServerDatabase, name: &NodeName) -> Result<(), NodeError> {
    database.change_nodes(|writer| match writer.delete(name) {
        Err(StoreError::UnknownNode { name }) => Err(NodeError::Unknown { name }),
        other => Ok(other?),
    })
}

/// Starts a node's stream anew: it is active under its next incarnation, and its extract is to be made as of this place in the log.
///
/// # Errors
/// The node is unknown or disabled, or the database refused.
pub fn start(database: &ServerDatabase, name: &NodeName) -> Result<Incarnation, NodeError> {
    let node = change(database, name, |_, node| match node.state {
        NodeState::Disabled => {
            Err(NodeError::State { name: node.name.clone(), state: node.state, reason: "it must be enabled before it is extracted" })
        }
        NodeState::Registered | NodeState::Active | NodeState::Stale => {
            node.state = NodeState::Active;
            node.incarnation = Incarnation(node.incarnation.0 + 1);
            node.extracted = node.incarnation;
            Ok(())
        }
    })?;
    Ok(node.incarnation)
}

/// Begins the streams of all running nodes anew, as [`restart`] does for one, in one transaction. Returns how many there are.
///
/// # Errors
/// The database refused.
pub fn restart_all(database: &ServerDatabase) -> Result<usize, NodeError> {
    database.change_nodes(|writer| {
        let running: Vec<Node> = writer.database().nodes()?.into_iter().filter(|node| node.state == NodeState::Active).collect();
        for node in &running {
            writer.put(&Node { incarnation: Incarnation(node.incarnation.0 + 1), ..node.clone() })?;
        }
        Ok(running.len())
    })
}

/// Begins a running node's stream anew without an extract: under its next incarnation, its file 1 brings everything that it sees,
/// and the local database goes on with it (R26). What was on its way under the former incarnation is of no more use.
///
/// # Errors
/// The node is unknown, or neither runs nor is stale, or the database refused.
pub fn restart(database: &ServerDatabase, name: &NodeName) -> Result<Incarnation, NodeError> {
    let node = change(database, name, |_, node| match node.state {
        NodeState::Active | NodeState::Stale => {
            node.state = NodeState::Active;
            node.incarnation = Incarnation(node.incarnation.0 + 1);
            Ok(())
        }
        state => Err(NodeError::State { name: node.name.clone(), state, reason: "only a node that runs begins anew in its stream" }),
    })?;
    Ok(node.incarnation)
}

/// Makes an active node stale, unless it began anew meanwhile: nothing is routed to it until it comes back. Returns whether it
/// is stale now.
///
/// # Errors
/// The node is unknown, or the database refused.
pub fn mark_stale(database: &ServerDatabase, name: &NodeName, incarnation: Incarnation) -> Result<bool, NodeError> {
    let node = change(database, name, |_, node| {
        if node.state == NodeState::Active && node.incarnation == incarnation {
            node.state = NodeState::Stale;
        }
        Ok(())
    })?;
    Ok(node.state == NodeState::Stale)
}

/// Sets after how many days of silence a node is stale; `None` = as `[server] stale_days` says.
///
/// # Errors
/// The node is unknown, or the database refused.
pub fn set_stale_after(database: &ServerDatabase, name: &NodeName, days: Option<u32>) -> Result<(), NodeError> {
    database.change_nodes(|writer| match writer.set_stale_after(name, days) {
        Err(StoreError::UnknownNode { name }) => Err(NodeError::Unknown { name }),
        other => Ok(other?),
    })
}

/// Registers the nodes of a CSV text, all or none. Its first line names the columns: `name`, optionally `model`, and attributes;
/// an empty cell sets nothing, several values of one attribute are separated by `;`. `file` is for messages.
///
/// # Errors
/// [`NodeError::Import`] with every line that is wrong; the heading or the text is wrong; or the database refused.
pub fn import_csv(database: &ServerDatabase, dock: &Dock, file: &str, text: impl Read) -> Result<Vec<Node>, NodeError> {
    let csv_error = |source| NodeError::Csv { file: file.to_owned(), source };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let heading = reader.headers().map_err(csv_error)?.clone();
    check_heading(dock, &heading).map_err(|reason| NodeError::CsvHeading { file: file.to_owned(), reason })?;
    database.change_nodes(|writer| {
        let mut nodes = Vec::new();
        let mut lines = Vec::new();
        for record in reader.records() {
            let record = record.map_err(csv_error)?;
            let line = record.position().map_or(0, csv::Position::line);
            match import_record(writer, dock, &heading, &record) {
                Ok(node) => nodes.push(node),
                Err(NodeError::Store(error)) => return Err(error.into()),
                Err(error) => lines.push((line, error)),
            }
        }
        if lines.is_empty() { Ok(nodes) } else { Err(NodeError::Import { file: file.to_owned(), lines }) }
    })
}

fn check_heading(dock: &Dock, heading: &csv::StringRecord) -> Result<(), String> {
    if !heading.iter().any(|column| column == "name") {
        return Err("there is no column `name`".into());
    }
    for (place, column) in heading.iter().enumerate() {
        if heading.iter().take(place).any(|earlier| earlier == column) {
            return Err(format!("column `{column}` stands there twice"));
        }
        if !matches!(column, "name" | "model") {
            given(dock, column).map_err(|reason| format!("column `{column}`: {reason}"))?;
        }
    }
    Ok(())
}

fn import_record(writer: &NodeWriter<'_>, dock: &Dock, heading: &csv::StringRecord, record: &csv::StringRecord) -> Result<Node, NodeError> {
    let mut name = None;
    let mut settings = NodeSettings::default();
    for (column, cell) in heading.iter().zip(record).filter(|(column, cell)| *column == "name" || !cell.is_empty()) {
        match column {
            "name" => name = Some(cell.parse::<NodeName>()?),
            "model" => settings.model = Some(Some(cell.to_owned())),
            attribute => {
                settings.attributes.insert(attribute.to_owned(), cell.split(';').map(|value| value.trim().to_owned()).collect());
            }
        }
    }
    // The heading has the column; a shorter record is refused by the reader.
    let name = name.map_or_else(|| "".parse(), Ok)?;
    add_in(writer, dock, &name, &settings)
}

fn add_in(writer: &NodeWriter<'_>, dock: &Dock, name: &NodeName, settings: &NodeSettings) -> Result<Node, NodeError> {
    if writer.database().node(name)?.is_some() {
        return Err(NodeError::Exists { name: name.clone() });
    }
    let incarnation = writer.last_incarnation(name)?;
    let mut node = Node {
        name: name.clone(),
        state: NodeState::Registered,
        incarnation,
        extracted: incarnation,
        model: None,
        attributes: BTreeMap::new(),
    };
    apply(writer, dock, &mut node, settings)?;
    writer.put(&node)?;
    Ok(node)
}

fn change(
    database: &ServerDatabase,
    name: &NodeName,
    edit: impl FnOnce(&NodeWriter<'_>, &mut Node) -> Result<(), NodeError>,
) -> Result<Node, NodeError> {
    database.change_nodes(|writer| {
        let before = writer.database().node(name)?.ok_or_else(|| NodeError::Unknown { name: name.clone() })?;
        let mut node = before.clone();
        edit(writer, &mut node)?;
        if node != before {
            writer.put(&node)?;
        }
        Ok(node)
    })
}

fn apply(writer: &NodeWriter<'_>, dock: &Dock, node: &mut Node, settings: &NodeSettings) -> Result<(), NodeError> {
    if let Some(model) = &settings.model {
        if let Some(model) = model
            && !dock.models.iter().any(|known| known.name == *model)
        {
            let known: Vec<&str> = dock.models.iter().map(|model| model.name.as_str()).collect();
            let known = if known.is_empty() { "no models".to_owned() } else { known.join(", ") };
            return Err(NodeError::Model { name: node.name.clone(), model: model.clone(), known });
        }
        node.model.clone_from(model);
    }
    for (attribute, texts) in &settings.attributes {
        let values = parse_values(writer, dock, attribute, texts).map_err(|problem| match problem {
            ValueProblem::Store(error) => NodeError::Store(error),
            ValueProblem::Reason(reason) => NodeError::Attribute { name: node.name.clone(), attribute: attribute.clone(), reason },
        })?;
        if values.is_empty() {
            node.attributes.remove(attribute);
        } else {
            node.attributes.insert(attribute.clone(), values);
        }
    }
    Ok(())
}

enum ValueProblem {
    Store(StoreError),
    Reason(String),
}

type Given<'a> = (AttributeType, &'a Option<(usize, usize)>, bool);

/// Returns what the definition says of an attribute that an administrator may set.
fn given<'a>(dock: &'a Dock, attribute: &str) -> Result<Given<'a>, String> {
    match dock.attributes.iter().find(|known| known.name == attribute).map(|known| &known.source) {
        Some(AttributeSource::Given { kind, must_exist, many }) => Ok((*kind, must_exist, *many)),
        Some(AttributeSource::Derived { .. }) => Err("the definition derives it, so it cannot be set".into()),
        None => {
            let settable = |known: &&crate::model::dock::NodeAttribute| matches!(known.source, AttributeSource::Given { .. });
            let names: Vec<&str> = dock.attributes.iter().filter(settable).map(|known| known.name.as_str()).collect();
            Err(format!(
                "`[node]` declares no such attribute; it has {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ))
        }
    }
}

fn parse_values(writer: &NodeWriter<'_>, dock: &Dock, attribute: &str, texts: &[String]) -> Result<Vec<Value>, ValueProblem> {
    let (kind, must_exist, many) = given(dock, attribute).map_err(ValueProblem::Reason)?;
    if texts.len() > 1 && !many {
        return Err(ValueProblem::Reason(format!("it takes one value, not {} (it is not declared `many = true`)", texts.len())));
    }
    let mut values: Vec<Value> = Vec::new();
    for text in texts {
        let value = match kind {
            AttributeType::Text if text.is_empty() => return Err(ValueProblem::Reason("an empty value".into())),
            AttributeType::Text => Value::text(text),
            AttributeType::Integer => match text.parse() {
                Ok(integer) => Value::Integer(integer),
                Err(_) => return Err(ValueProblem::Reason(format!("`{text}` is not a whole number"))),
            },
        };
        let target = must_exist.and_then(|(table, column)| {
            let table = dock.tables.get(table)?;
            Some((&table.name, &table.columns.get(column)?.name))
        });
        if let Some((table, column)) = target
            && !writer.database().value_exists(table, column, &value).map_err(ValueProblem::Store)?
        {
            return Err(ValueProblem::Reason(format!("no row of {table} has {column} = {value}")));
        }
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Ok(values)
}
