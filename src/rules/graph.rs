//! The scope graph: a definition compiled into an acyclic graph along which visibility keys flow.
//!
//! A vertex stands for the rows of one table in one role; its inputs say where a row's keys come from: a column of its
//! own (`Base`), its one parent (`Follow`, nothing stored), or all rows that point at it (`Junction`, the only place
//! with stored state). Vertices are numbered in topological order, so whatever a vertex reads has a smaller number.
//!
//! A key is (path, value). Paths are named by the rules that lead to them, so the same number under two rules is two
//! keys, and a key inherited because a visible row refers to this one names the whole way (R8). Within a chain of joins
//! values flow under the path [`RAW`], which no node holds, so rules that share a chain share its stored counts.

use crate::base::limits::RULE_PATHS_MAX;
use crate::model::dock::{
    AttributeSource, ColumnIndex, Direction, Dock, Hop, Predicate, Reference, RuleKind, RulePath, TableIndex, Window,
};
use crate::model::value::{Collation, Value};
use std::collections::{BTreeSet, HashMap};

/// Index into [`ScopeGraph::paths`].
pub type PathIndex = usize;
/// Index into [`ScopeGraph::vertices`].
pub type VertexIndex = usize;
/// Index into [`ScopeGraph::junctions`].
pub type JunctionIndex = usize;

/// The path of values inside a chain of joins; no node holds keys of it.
pub const RAW: PathIndex = 0;

/// A definition that cannot be compiled. `check` reports the same with a place in the text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// Rules that need each other's result (R9).
    #[error("circle: the visibility of {table} depends on itself")]
    Circle {
        /// A table on the circle.
        table: String,
    },
    /// More key spaces than allowed.
    #[error("the rules make more than {RULE_PATHS_MAX} rule paths; `referenced` rules multiply them")]
    TooManyPaths,
}

/// The compiled rules.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScopeGraph {
    /// Key spaces; index [`RAW`] is the one without a name.
    pub paths: Vec<ScopePath>,
    /// Vertices in topological order.
    pub vertices: Vec<Vertex>,
    /// Edges with stored state.
    pub junctions: Vec<Junction>,
    /// Per table of the dock: the vertex whose keys are the row's visibility.
    pub visible: Vec<Option<VertexIndex>>,
}

/// A key space.
#[derive(Debug, Clone, PartialEq)]
pub struct ScopePath {
    /// E.g. `Orders.own`, `Customers.ordered<Orders.own`; empty for [`RAW`].
    pub name: String,
    /// Every rule on the way; a node holds keys of this path iff its model has all of them.
    pub rules: Vec<usize>,
    /// The node attribute whose values are the keys; `None` = `everyone`, one key with the value NULL.
    pub attribute: Option<usize>,
    /// Collation under which row values and node values are folded.
    pub collation: Collation,
}

/// The rows of one table in one role.
#[derive(Debug, Clone, PartialEq)]
pub struct Vertex {
    /// The table.
    pub table: TableIndex,
    /// Rows that do not fit have no keys here: (column, folded value).
    pub filters: Vec<(ColumnIndex, Value)>,
    /// Where keys come from.
    pub inputs: Vec<Input>,
    /// Junctions that the rows of this vertex feed.
    pub feeds: Vec<JunctionIndex>,
    /// Whether changes of its rows are sent to nodes.
    pub emits: bool,
    /// Paths that its rows can have keys of.
    pub paths: BTreeSet<PathIndex>,
}

/// One source of keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// The row must fit this for the input to count.
    pub guard: Guard,
    /// Where the keys come from.
    pub source: Source,
}

/// Row conditions of a rule.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Guard {
    /// `where`.
    pub predicate: Option<Predicate>,
    /// Time windows, the rule's and the object's.
    pub windows: Vec<Window>,
}

/// How path numbers change along an edge: (path at the source, path here).
pub type PathMap = Vec<(PathIndex, PathIndex)>;

/// Where the keys of an input come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The folded value of a column of the row; without a column the constant key of `everyone`.
    Base {
        /// The column.
        column: Option<ColumnIndex>,
        /// Path of the key.
        path: PathIndex,
    },
    /// The keys of the one row whose primary key equals these columns.
    Follow {
        /// The vertex of that row.
        vertex: VertexIndex,
        /// Columns here, in the order of that table's primary key.
        columns: Vec<ColumnIndex>,
        /// Path change.
        map: PathMap,
    },
    /// The keys of all rows of the junction's source that carry the value of these columns.
    Junction {
        /// The stored edge.
        junction: JunctionIndex,
        /// Columns here, in the order of the junction's columns.
        columns: Vec<ColumnIndex>,
        /// Path change.
        map: PathMap,
    },
}

/// A fan-in edge: per value and key the number of source rows that derive it.
#[derive(Debug, Clone, PartialEq)]
pub struct Junction {
    /// The vertex whose rows are counted.
    pub source: VertexIndex,
    /// Columns of the source table that make the value.
    pub columns: Vec<ColumnIndex>,
    /// Collation of each column's comparison.
    pub collations: Vec<Collation>,
}

impl ScopeGraph {
    /// Returns the graph of a definition.
    pub fn compile(dock: &Dock) -> Result<ScopeGraph, GraphError> {
        let mut compiler = Compiler {
            dock,
            graph: ScopeGraph {
                paths: vec![ScopePath { name: String::new(), rules: Vec::new(), attribute: None, collation: Collation::Binary }],
                visible: vec![None; dock.tables.len()],
                ..ScopeGraph::default()
            },
            path_by_name: HashMap::new(),
            building: vec![false; dock.tables.len()],
        };
        for (table, declared) in dock.tables.iter().enumerate() {
            if declared.object.is_some() {
                compiler.visible(table)?;
            }
        }
        Ok(compiler.graph)
    }

    /// Returns the path of that name.
    pub fn path(&self, name: &str) -> Option<PathIndex> {
        self.paths.iter().position(|path| path.name == name)
    }

    /// Returns the paths of which a node of that model holds keys.
    pub fn paths_of_model<'a>(&'a self, dock: &'a Dock, model: Option<&'a str>) -> impl Iterator<Item = (PathIndex, &'a ScopePath)> + 'a {
        self.paths.iter().enumerate().skip(RAW + 1).filter(move |(_, path)| path.rules.iter().all(|rule| dock.model_has_rule(model, *rule)))
    }

    /// Returns the columns by which the data store is searched: per table the column lists with their collations.
    /// A list equal to the table's primary key (under BINARY) needs no index of its own.
    pub fn searched_columns(&self, dock: &Dock) -> BTreeSet<(TableIndex, Vec<(ColumnIndex, Collation)>)> {
        let mut searched = BTreeSet::new();
        for vertex in &self.vertices {
            for input in &vertex.inputs {
                match &input.source {
                    Source::Base { column: Some(column), path } => {
                        let collation = self.paths.get(*path).map_or(Collation::Binary, |path| path.collation);
                        // Inside a chain a value is searched by its own column's collation.
                        let collation = if *path == RAW { column_collation(dock, vertex.table, *column) } else { collation };
                        searched.insert((vertex.table, vec![(*column, collation)]));
                    }
                    Source::Base { column: None, .. } => {}
                    Source::Follow { columns, .. } => {
                        searched.insert((vertex.table, columns.iter().map(|column| (*column, Collation::Binary)).collect()));
                    }
                    Source::Junction { junction, columns, .. } => {
                        let collations = self.junctions.get(*junction).map(|junction| junction.collations.as_slice()).unwrap_or_default();
                        searched.insert((vertex.table, columns.iter().copied().zip(collations.iter().copied()).collect()));
                    }
                }
                for window in &input.guard.windows {
                    searched.insert((vertex.table, vec![(window.column, Collation::Binary)]));
                }
            }
        }
        for attribute in &dock.attributes {
            if let AttributeSource::Derived { hops, .. } = &attribute.source {
                for hop in hops {
                    let columns =
                        hop.hop.join.iter().map(|column| (*column, column_collation(dock, hop.hop.table, *column))).collect::<Vec<_>>();
                    searched.insert((hop.hop.table, columns));
                }
            }
        }
        searched.retain(|(table, columns)| {
            let key = dock.tables.get(*table).map(|table| table.key.as_slice()).unwrap_or_default();
            let binary = columns.iter().all(|(_, collation)| *collation == Collation::Binary);
            let is_prefix = columns.len() <= key.len() && columns.iter().zip(key).all(|((column, _), key)| column == key);
            !(binary && is_prefix)
        });
        searched
    }
}

/// Returns the declared collation of a column.
pub fn column_collation(dock: &Dock, table: TableIndex, column: ColumnIndex) -> Collation {
    dock.tables.get(table).and_then(|table| table.columns.get(column)).map_or(Collation::Binary, |column| column.collation)
}

/// Returns the collations of a foreign key: as for SQLite, the columns referred to decide, whichever side is searched.
pub fn reference_collations(dock: &Dock, reference: &Reference) -> Vec<Collation> {
    reference.to_columns.iter().map(|column| column_collation(dock, reference.to_table, *column)).collect()
}

/// Returns the collations of an equi-join of a path: a primary key decides how it is compared, else the side to the right.
pub fn join_collations(
    dock: &Dock,
    here: TableIndex,
    here_columns: &[ColumnIndex],
    there: TableIndex,
    there_columns: &[ColumnIndex],
) -> Vec<Collation> {
    let is_key = |table: TableIndex, column: ColumnIndex| dock.tables.get(table).is_some_and(|table| table.key.contains(&column));
    here_columns
        .iter()
        .zip(there_columns)
        .map(|(left, right)| {
            let left_decides = is_key(here, *left) && !is_key(there, *right);
            if left_decides { column_collation(dock, here, *left) } else { column_collation(dock, there, *right) }
        })
        .collect()
}

struct Compiler<'a> {
    dock: &'a Dock,
    graph: ScopeGraph,
    path_by_name: HashMap<String, PathIndex>,
    building: Vec<bool>,
}

impl Compiler<'_> {
    /// Returns the visible vertex of a table, compiling it and what it stands on first.
    fn visible(&mut self, table: TableIndex) -> Result<Option<VertexIndex>, GraphError> {
        if let Some(vertex) = self.graph.visible[table] {
            return Ok(Some(vertex));
        }
        let declared = &self.dock.tables[table];
        let Some(object) = declared.object else { return Ok(None) };
        if std::mem::replace(&mut self.building[table], true) {
            return Err(GraphError::Circle { table: declared.name.clone() });
        }
        let mut inputs = Vec::new();
        if let Some(reference) = &declared.member_of {
            if let Some(parent) = self.visible(reference.to_table)? {
                let map = self.graph.vertices[parent].paths.iter().map(|path| (*path, *path)).collect();
                inputs.push(self.join_input(Guard::default(), &Join::from(self.dock, reference), Side::Parent(parent), map));
            }
        } else {
            for rule in 0..self.dock.rules.len() {
                if self.dock.rules[rule].object == object {
                    self.rule_inputs(table, rule, &mut inputs)?;
                }
            }
        }
        let emits = self.dock.objects[object].direction != Direction::Upload;
        let vertex = self.add_vertex(Vertex { table, filters: Vec::new(), inputs, feeds: Vec::new(), emits, paths: BTreeSet::new() });
        self.graph.visible[table] = Some(vertex);
        self.building[table] = false;
        Ok(Some(vertex))
    }

    fn rule_inputs(&mut self, table: TableIndex, rule: usize, inputs: &mut Vec<Input>) -> Result<(), GraphError> {
        let declared = &self.dock.rules[rule];
        let object = &self.dock.objects[declared.object];
        let guard =
            Guard { predicate: declared.predicate.clone(), windows: declared.window.iter().chain(object.window.iter()).cloned().collect() };
        match &declared.kind {
            RuleKind::Nobody => {}
            RuleKind::Everyone => {
                let path = self.path(declared.name.clone(), vec![rule], None, Collation::Binary)?;
                inputs.push(Input { guard, source: Source::Base { column: None, path } });
            }
            RuleKind::Path(path) => inputs.push(self.path_input(table, rule, path, guard)?),
            RuleKind::Referenced(references) => {
                for reference in references {
                    // A table outside every object has no visible rows, so nothing is seen through it.
                    let Some(source) = self.visible(reference.table)? else { continue };
                    let mut map = PathMap::new();
                    for path in self.graph.vertices[source].paths.clone() {
                        let from = self.graph.paths[path].clone();
                        let mut rules = from.rules;
                        rules.push(rule);
                        let name = format!("{}<{}", declared.name, from.name);
                        map.push((path, self.path(name, rules, from.attribute, from.collation)?));
                    }
                    inputs.push(self.join_input(guard.clone(), &Join::reversed(self.dock, reference), Side::Children(source), map));
                }
            }
        }
        Ok(())
    }

    fn path_input(&mut self, table: TableIndex, rule: usize, path: &RulePath, guard: Guard) -> Result<Input, GraphError> {
        let name = self.dock.rules[rule].name.clone();
        let Some((first, rest)) = path.hops.split_first() else {
            let column = path.start.first().copied();
            let collation = column.map_or(Collation::Binary, |column| column_collation(self.dock, table, column));
            let path = self.path(name, vec![rule], Some(path.attribute), collation)?;
            return Ok(Input { guard, source: Source::Base { column, path } });
        };
        let last = path.hops.last().unwrap_or(first);
        let collation = last.out.first().map_or(Collation::Binary, |column| column_collation(self.dock, last.table, *column));
        let key_path = self.path(name, vec![rule], Some(path.attribute), collation)?;
        let source = self.chain(first, rest);
        let join = Join::hop(self.dock, table, &path.start, first);
        Ok(self.join_input(guard, &join, Side::Chain(source), vec![(RAW, key_path)]))
    }

    /// Returns the vertex of a hop whose keys are the values that the rest of the chain ends in.
    fn chain(&mut self, hop: &Hop, rest: &[Hop]) -> VertexIndex {
        let source = match rest.split_first() {
            None => Input { guard: Guard::default(), source: Source::Base { column: hop.out.first().copied(), path: RAW } },
            Some((next, rest)) => {
                let source = self.chain(next, rest);
                let join = Join::hop(self.dock, hop.table, &hop.out, next);
                self.join_input(Guard::default(), &join, Side::Chain(source), vec![(RAW, RAW)])
            }
        };
        let filters =
            hop.filters.iter().map(|(column, value)| (*column, value.fold(column_collation(self.dock, hop.table, *column)))).collect();
        self.add_vertex(Vertex { table: hop.table, filters, inputs: vec![source], feeds: Vec::new(), emits: false, paths: BTreeSet::new() })
    }

    /// Returns the input along a join: by the other table's primary key it is followed, else it is counted.
    fn join_input(&mut self, guard: Guard, join: &Join, side: Side, map: PathMap) -> Input {
        let (Side::Parent(vertex) | Side::Children(vertex) | Side::Chain(vertex)) = side;
        let collations = join.collations.clone();
        let key = &self.dock.tables[join.there].key;
        let by_key = join.there_columns.len() == key.len() && join.there_columns.iter().all(|column| key.contains(column));
        if by_key && collations.iter().all(|collation| *collation == Collation::Binary) {
            let columns = key
                .iter()
                .filter_map(|key| join.there_columns.iter().position(|there| there == key))
                .filter_map(|at| join.here_columns.get(at).copied())
                .collect();
            return Input { guard, source: Source::Follow { vertex, columns, map } };
        }
        let stored = Junction { source: vertex, columns: join.there_columns.clone(), collations };
        let junction = self.graph.junctions.iter().position(|known| *known == stored).unwrap_or_else(|| {
            self.graph.junctions.push(stored);
            let junction = self.graph.junctions.len() - 1;
            self.graph.vertices[vertex].feeds.push(junction);
            junction
        });
        Input { guard, source: Source::Junction { junction, columns: join.here_columns.clone(), map } }
    }

    /// Adds a vertex, or returns the equal one of another rule's chain.
    fn add_vertex(&mut self, mut vertex: Vertex) -> VertexIndex {
        for input in &vertex.inputs {
            match &input.source {
                Source::Base { path, .. } => {
                    vertex.paths.insert(*path);
                }
                Source::Follow { map, .. } | Source::Junction { map, .. } => vertex.paths.extend(map.iter().map(|(_, to)| *to)),
            }
        }
        let is_chain = vertex.paths.iter().all(|path| *path == RAW) && !vertex.inputs.is_empty();
        if is_chain {
            let equal = |known: &Vertex| known.table == vertex.table && known.filters == vertex.filters && known.inputs == vertex.inputs;
            if let Some(known) = self.graph.vertices.iter().position(equal) {
                return known;
            }
        }
        self.graph.vertices.push(vertex);
        self.graph.vertices.len() - 1
    }

    fn path(&mut self, name: String, rules: Vec<usize>, attribute: Option<usize>, collation: Collation) -> Result<PathIndex, GraphError> {
        if let Some(path) = self.path_by_name.get(&name) {
            return Ok(*path);
        }
        if self.graph.paths.len() > RULE_PATHS_MAX {
            return Err(GraphError::TooManyPaths);
        }
        let index = self.graph.paths.len();
        self.graph.paths.push(ScopePath { name: name.clone(), rules, attribute, collation });
        self.path_by_name.insert(name, index);
        Ok(index)
    }
}

/// Which side of a join the key source is on; all three give its vertex.
enum Side {
    Parent(VertexIndex),
    Children(VertexIndex),
    Chain(VertexIndex),
}

/// An equi-join between the table that gets keys (here) and the one that gives them (there).
struct Join {
    here_columns: Vec<ColumnIndex>,
    there: TableIndex,
    there_columns: Vec<ColumnIndex>,
    collations: Vec<Collation>,
}

impl Join {
    fn hop(dock: &Dock, here: TableIndex, here_columns: &[ColumnIndex], hop: &Hop) -> Join {
        Join {
            here_columns: here_columns.to_vec(),
            there: hop.table,
            there_columns: hop.join.clone(),
            collations: join_collations(dock, here, here_columns, hop.table, &hop.join),
        }
    }

    fn from(dock: &Dock, reference: &Reference) -> Join {
        Join {
            here_columns: reference.columns.clone(),
            there: reference.to_table,
            there_columns: reference.to_columns.clone(),
            collations: reference_collations(dock, reference),
        }
    }

    fn reversed(dock: &Dock, reference: &Reference) -> Join {
        Join {
            here_columns: reference.to_columns.clone(),
            there: reference.table,
            there_columns: reference.columns.clone(),
            collations: reference_collations(dock, reference),
        }
    }
}
