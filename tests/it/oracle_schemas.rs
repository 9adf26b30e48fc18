//! Two definitions that between them use every kind of rule, built by hand, with the values that random rows take.
//!
//! Value domains are small on purpose: rows must meet, collide, dangle and move between the same few keys.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::oracle::Closure;
use dockmaster::model::dock::*;
use dockmaster::model::schema::Schema;
use dockmaster::model::value::{Collation, Value};
use dockmaster::store::schema::read_schema;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a column of a random row holds.
#[derive(Clone, Copy)]
pub(crate) enum Domain {
    /// 1..=n.
    Id(i64),
    /// 1..=n, sometimes as a real of the same value, sometimes as text: an untyped column.
    Untyped(i64),
    /// NULL now and then, else like the other one of 1..=n.
    Maybe(i64),
    /// Like `Maybe`, and now and then a real.
    MaybeUntyped(i64),
    /// One of these texts.
    Text(&'static [&'static str]),
    /// One of these texts or NULL.
    MaybeText(&'static [&'static str]),
    /// A date near today, as text or NULL or nonsense.
    Date,
    /// Seconds since 1970 near today, or NULL.
    Seconds,
    /// Anything at all.
    Any,
}

/// A definition with what the test needs to know of it beyond the product.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) dock: Dock,
    pub(crate) domains: Vec<Vec<Domain>>,
    pub(crate) predicates: BTreeMap<String, Closure>,
    /// Domain of each given attribute.
    pub(crate) given: Vec<(&'static str, Domain, usize)>,
    pub(crate) models: Vec<Option<String>>,
}

/// Models of random nodes: no model is the usual case.
fn named(models: &[&str]) -> Vec<Option<String>> {
    [None, None].into_iter().chain(models.iter().map(|name| Some((*name).to_owned()))).collect()
}

impl Subject {
    /// Returns the definition itself for every third seed, else one that differs from it at random: rules left out,
    /// objects that only go up, other collations, columns that are not sent, other models.
    pub(crate) fn varied(&self, seed: u64) -> Subject {
        let mut varied = self.clone();
        if seed.is_multiple_of(3) {
            return varied;
        }
        let rng = &mut Rng::with_seed(seed ^ 0x5eed);
        let mut one_in = |n: u32| rng.u32(0..n) == 0;
        let dock = &mut varied.dock;
        dock.rules.retain(|_| !one_in(8));
        for object in &mut dock.objects {
            if one_in(10) {
                object.direction = Direction::Upload;
            }
        }
        for table in &mut dock.tables {
            for (number, column) in table.columns.iter_mut().enumerate() {
                if one_in(8) {
                    column.collation = if one_in(2) { Collation::NoCase } else { Collation::Rtrim };
                }
                if one_in(8) {
                    column.collation = Collation::Binary;
                }
                column.sent = table.key.contains(&number) || column.sent != one_in(12);
            }
        }
        for name in ["first", "second"] {
            let mut patterns = |n: u32| -> Vec<String> {
                let rules = dock.rules.iter().filter(|_| one_in(n)).map(|rule| rule.name.as_str()).collect::<Vec<_>>();
                rules
                    .into_iter()
                    .map(|rule| match (one_in(3), rule.split_once('.').unwrap()) {
                        (true, (object, rule)) if one_in(2) => {
                            if one_in(2) {
                                format!("*.{rule}")
                            } else {
                                format!("{object}.*")
                            }
                        }
                        _ => rule.to_owned(),
                    })
                    .collect()
            };
            let (only, without) = (patterns(2), patterns(6));
            dock.models.push(RoutingModel { name: name.to_owned(), only: (!only.is_empty()).then_some(only), without });
            varied.models.push(Some(name.to_owned()));
        }
        varied
    }
}

struct Building {
    dock: Dock,
    domains: Vec<Vec<Domain>>,
}

impl Building {
    /// Adds a table; a column is (`name`, domain) with `-` before a column that is not sent, `~` before a NOCASE one and
    /// `_` before an RTRIM one.
    fn table(&mut self, name: &str, key: &[&str], columns: &[(&str, Domain)]) -> usize {
        let declared = columns.iter().map(|(name, _)| {
            let collation = match name.as_bytes()[0] {
                b'~' => Collation::NoCase,
                b'_' => Collation::Rtrim,
                _ => Collation::Binary,
            };
            DockColumn { name: name.trim_start_matches(['-', '~', '_']).to_owned(), sent: !name.starts_with('-'), collation }
        });
        let mut table = DockTable {
            name: name.to_owned(),
            columns: declared.collect(),
            key: Vec::new(),
            key_is_rowid: false,
            object: None,
            member_of: None,
            dangling: Vec::new(),
            by_comparison: false,
            merge: Default::default(),
        };
        table.key = key.iter().map(|column| table.column(column).unwrap()).collect();
        table.key_is_rowid = table.key.len() == 1 && matches!(columns[table.key[0]].1, Domain::Id(_));
        self.dock.tables.push(table);
        self.domains.push(columns.iter().map(|(_, domain)| *domain).collect());
        self.dock.tables.len() - 1
    }

    fn columns(&self, table: usize, names: &[&str]) -> Vec<usize> {
        names.iter().map(|name| self.dock.tables[table].column(name).unwrap_or_else(|| panic!("{name}"))).collect()
    }

    /// `T(a, b) -> U(c, d)`.
    fn reference(&self, from: &str, columns: &[&str], to: &str, to_columns: &[&str]) -> Reference {
        let (table, to_table) = (self.dock.table(from).unwrap(), self.dock.table(to).unwrap());
        Reference { table, columns: self.columns(table, columns), to_table, to_columns: self.columns(to_table, to_columns) }
    }

    /// Adds an object; members are (table, columns, parent, columns of the parent).
    fn object(&mut self, table: &str, direction: Direction, window: Option<Window>, members: &[(&str, &[&str], &str, &[&str])]) {
        let number = self.dock.objects.len();
        let primary = self.dock.table(table).unwrap();
        self.dock.tables[primary].object = Some(number);
        let mut object = DockObject {
            name: table.to_owned(),
            table: primary,
            members: Vec::new(),
            direction,
            writable: false,
            give_away: false,
            window,
        };
        for (member, columns, parent, parent_columns) in members {
            let reference = self.reference(member, columns, parent, parent_columns);
            object.members.push(reference.table);
            let member = &mut self.dock.tables[reference.table];
            member.object = Some(number);
            member.member_of = Some(reference);
        }
        self.dock.objects.push(object);
    }

    fn rule(&mut self, name: &str, kind: RuleKind, predicate: Option<(&str, &[&str])>, window: Option<Window>) {
        let object = self.dock.objects.iter().position(|object| name.starts_with(&format!("{}.", object.name))).unwrap();
        let table = self.dock.objects[object].table;
        let predicate = predicate.map(|(sql, columns)| Predicate { sql: sql.to_owned(), columns: self.columns(table, columns) });
        self.dock.rules.push(VisibilityRule { name: name.to_owned(), object, kind, predicate, window });
    }

    fn hop(&self, table: &str, join: &[&str], filters: &[(&str, Value)], out: &[&str]) -> Hop {
        let number = self.dock.table(table).unwrap();
        Hop {
            table: number,
            join: self.columns(number, join),
            filters: filters.iter().map(|(column, value)| (self.columns(number, &[column])[0], value.clone())).collect(),
            out: self.columns(number, out),
        }
    }

    /// A path from `table.start` over hops to `node.attribute`.
    fn path(&self, table: &str, start: &[&str], hops: Vec<Hop>, attribute: &str) -> RuleKind {
        let table = self.dock.table(table).unwrap();
        RuleKind::Path(RulePath { start: self.columns(table, start), hops, attribute: self.dock.attribute(attribute).unwrap() })
    }

    fn given(&mut self, name: &str, kind: AttributeType, many: bool) {
        let source = AttributeSource::Given { kind, must_exist: None, many };
        self.dock.attributes.push(NodeAttribute { name: name.to_owned(), source });
    }

    fn derived(&mut self, name: &str, from: &str, hops: Vec<NodeHop>) {
        let source = AttributeSource::Derived { from: self.dock.attribute(from).unwrap(), hops };
        self.dock.attributes.push(NodeAttribute { name: name.to_owned(), source });
    }

    fn model(&mut self, name: &str, only: Option<&[&str]>, without: &[&str]) {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        self.dock.models.push(RoutingModel { name: name.to_owned(), only: only.map(owned), without: owned(without) });
    }

    fn window(&self, table: &str, column: &str, days: u32) -> Option<Window> {
        Some(Window { column: self.columns(self.dock.table(table).unwrap(), &[column])[0], days })
    }
}

fn building() -> Building {
    let dock = Dock { tables: Vec::new(), objects: Vec::new(), rules: Vec::new(), attributes: Vec::new(), models: Vec::new() };
    Building { dock, domains: Vec::new() }
}

const KINDS: &[&str] = &["house", "House", "key", ""];
const STATUS: &[&str] = &["on board", "ON BOARD", "joining", "left"];
const SHIPS: &[&str] = &["A1", "a1", "B2", "C3", "c3"];
const PORTS: &[&str] = &["NYK", "NYK ", "HAM", "HAM  "];

/// Positions in a tree, accounts with teams, opportunities with a window, products behind a chain of references.
pub(crate) fn crm() -> Subject {
    use Domain::*;
    let mut b = building();
    b.table("account", &["id"], &[("id", Id(7)), ("org_id", Maybe(3)), ("~kind", Text(KINDS)), ("-secret", Any), ("name", Any)]);
    b.table("account_region", &["id"], &[("id", Id(7)), ("account_id", MaybeUntyped(7)), ("region_id", MaybeUntyped(3))]);
    b.table("account_team", &["account_id", "position_id"], &[("account_id", Id(7)), ("position_id", Id(6)), ("note", Any)]);
    b.table("address", &["id"], &[("id", Id(6)), ("account_id", Maybe(7)), ("city", Any)]);
    b.table("address_note", &["id"], &[("id", Id(5)), ("address_id", MaybeUntyped(6)), ("text", Any)]);
    b.table("category", &["code"], &[("~code", Text(KINDS)), ("group_id", MaybeUntyped(3)), ("name", Any)]);
    b.table("contact", &["id"], &[("id", Id(7)), ("account_id", MaybeUntyped(7)), ("owner_id", Maybe(5)), ("-salary", Any)]);
    b.table("document", &["id"], &[("id", Id(5)), ("account_id", MaybeUntyped(7)), ("title", Any)]);
    b.table("employee", &["id"], &[("id", Id(5)), ("position_id", Maybe(6)), ("name", Any)]);
    b.table("feedback", &["id"], &[("id", Id(4)), ("account_id", Maybe(7))]);
    b.table("grp", &["id"], &[("id", Id(3)), ("name", Any)]);
    b.table(
        "opportunity",
        &["id"],
        &[("id", Id(7)), ("account_id", Maybe(7)), ("position_id", Maybe(6)), ("closed_at", Date), ("title", Any)],
    );
    b.table("opportunity_line", &["id"], &[("id", Id(8)), ("opportunity_id", Maybe(7)), ("product_id", MaybeUntyped(5))]);
    b.table("opportunity_team", &["id"], &[("id", Id(6)), ("opportunity_id", Maybe(7)), ("position_id", Maybe(6)), ("active", Id(2))]);
    b.table("org", &["id"], &[("id", Id(3)), ("name", Any)]);
    b.table("place", &["id"], &[("id", Untyped(4)), ("name", Any), ("seen_at", Date)]);
    b.table("position", &["id"], &[("id", Id(6)), ("parent_id", Maybe(6)), ("org_id", Maybe(3))]);
    b.table("product", &["id"], &[("id", Untyped(5)), ("category", MaybeText(KINDS)), ("price", Any)]);
    b.table("product_text", &["id"], &[("id", Id(6)), ("product_id", MaybeUntyped(5)), ("text", Any)]);
    b.table("region_team", &["region_id", "employee_id"], &[("region_id", Untyped(3)), ("employee_id", Id(5)), ("since", Date)]);
    b.table("visit", &["id"], &[("id", Id(5)), ("employee_id", Maybe(5)), ("place_id", MaybeUntyped(4))]);
    b.table("visit_photo", &["id"], &[("id", Id(5)), ("visit_id", Maybe(5)), ("place_id", MaybeUntyped(4))]);

    let node_hop =
        |b: &Building, table: &str, join: &str, out: &str, recursive| NodeHop { hop: b.hop(table, &[join], &[], &[out]), recursive };
    b.given("employee", AttributeType::Integer, true);
    b.derived("position", "employee", vec![node_hop(&b, "employee", "id", "position_id", false)]);
    b.derived("team", "position", vec![node_hop(&b, "position", "parent_id", "id", true)]);
    b.derived("org", "position", vec![node_hop(&b, "position", "id", "org_id", false)]);
    b.derived(
        "peer_org",
        "employee",
        vec![
            node_hop(&b, "employee", "id", "position_id", false),
            node_hop(&b, "position", "parent_id", "id", true),
            node_hop(&b, "position", "id", "org_id", false),
        ],
    );

    b.object("org", Direction::Download, None, &[]);
    b.object("position", Direction::Download, None, &[("employee", &["position_id"], "position", &["id"])]);
    b.object(
        "account",
        Direction::TwoWay,
        None,
        &[
            ("account_team", &["account_id"], "account", &["id"]),
            ("address", &["account_id"], "account", &["id"]),
            ("address_note", &["address_id"], "address", &["id"]),
        ],
    );
    b.object("contact", Direction::TwoWay, None, &[]);
    b.object("document", Direction::TwoWay, None, &[]);
    let window = b.window("opportunity", "closed_at", 40);
    b.object(
        "opportunity",
        Direction::TwoWay,
        window,
        &[
            ("opportunity_line", &["opportunity_id"], "opportunity", &["id"]),
            ("opportunity_team", &["opportunity_id"], "opportunity", &["id"]),
        ],
    );
    b.object("product", Direction::Download, None, &[("product_text", &["product_id"], "product", &["id"])]);
    b.object("category", Direction::Download, None, &[]);
    b.object("grp", Direction::Download, None, &[]);
    b.object("visit", Direction::Upload, None, &[("visit_photo", &["visit_id"], "visit", &["id"])]);
    b.object("place", Direction::Download, None, &[]);
    b.object("feedback", Direction::Upload, None, &[]);

    b.rule("org.all", RuleKind::Everyone, None, None);
    b.rule("position.visible", RuleKind::Everyone, None, None);
    let to_team = |b: &Building| vec![b.hop("account_team", &["account_id"], &[], &["position_id"])];
    b.rule("account.team", b.path("account", &["id"], to_team(&b), "position"), None, None);
    b.rule("account.manager", b.path("account", &["id"], to_team(&b), "team"), None, None);
    b.rule("account.org", b.path("account", &["org_id"], vec![], "org"), Some(("kind = 'house'", &["kind"])), None);
    let needed =
        vec![b.reference("opportunity", &["account_id"], "account", &["id"]), b.reference("contact", &["account_id"], "account", &["id"])];
    b.rule("account.needed", RuleKind::Referenced(needed), None, None);
    b.rule("contact.account", b.path("contact", &["account_id"], to_team(&b), "position"), None, None);
    b.rule("contact.mine", b.path("contact", &["owner_id"], vec![], "employee"), None, None);
    let boss = vec![b.hop("employee", &["id"], &[], &["position_id"]), b.hop("position", &["id"], &[], &["parent_id"])];
    b.rule("contact.boss", b.path("contact", &["owner_id"], boss, "position"), None, None);
    b.rule("contact.rich", RuleKind::Everyone, Some(("salary > 5", &["salary"])), None);
    // Three hops, the last two through tables that no node gets.
    let regions = vec![
        b.hop("account", &["id"], &[("kind", Value::text("HOUSE"))], &["id"]),
        b.hop("account_region", &["account_id"], &[], &["region_id"]),
        b.hop("region_team", &["region_id"], &[], &["employee_id"]),
    ];
    b.rule("document.region", b.path("document", &["account_id"], regions, "employee"), None, None);
    let house = vec![b.hop("account", &["id"], &[("org_id", Value::Integer(2))], &["org_id"])];
    b.rule("document.house", b.path("document", &["account_id"], house, "org"), None, None);
    b.rule("opportunity.own", b.path("opportunity", &["position_id"], vec![], "position"), None, None);
    let shared = vec![b.hop("opportunity_team", &["opportunity_id"], &[("active", Value::Integer(1))], &["position_id"])];
    b.rule("opportunity.shared", b.path("opportunity", &["id"], shared, "position"), None, None);
    b.rule("opportunity.manager", b.path("opportunity", &["position_id"], vec![], "team"), None, b.window("opportunity", "closed_at", 10));
    b.rule("product.used", RuleKind::Referenced(vec![b.reference("opportunity_line", &["product_id"], "product", &["id"])]), None, None);
    b.rule("category.used", RuleKind::Referenced(vec![b.reference("product", &["category"], "category", &["code"])]), None, None);
    b.rule(
        "grp.used",
        RuleKind::Referenced(vec![b.reference("category", &["group_id"], "grp", &["id"])]),
        Some(("name IS NOT NULL", &["name"])),
        None,
    );
    b.rule("grp.peers", b.path("grp", &["id"], vec![], "peer_org"), None, None);
    b.rule("visit.own", b.path("visit", &["employee_id"], vec![], "employee"), None, None);
    let places = ["visit", "visit_photo"].map(|table| b.reference(table, &["place_id"], "place", &["id"]));
    b.rule("place.used", RuleKind::Referenced(places.to_vec()), Some(("length(name) < 5", &["name"])), b.window("place", "seen_at", 15));
    b.rule("feedback.visible", RuleKind::Nobody, None, None);
    b.model("rep", None, &["*.manager", "*.org", "grp.peers"]);
    b.model("executive", Some(&["*.org", "opportunity.manager"]), &[]);
    b.model("lean", None, &["product.used", "org.all", "account.team"]);

    let mut predicates: BTreeMap<String, Closure> = BTreeMap::new();
    // Predicates compare bytes: the column's own collation does not count.
    predicates.insert("kind = 'house'".to_owned(), Arc::new(|row| row[2] == Value::text("house")));
    predicates.insert(
        "salary > 5".to_owned(),
        Arc::new(|row| match &row[3] {
            Value::Integer(integer) => *integer > 5,
            Value::Real(real) => *real > 5.0,
            Value::Text(_) | Value::Blob(_) => true,
            Value::Null => false,
        }),
    );
    predicates.insert(
        "length(name) < 5".to_owned(),
        Arc::new(|row| match &row[1] {
            Value::Null => false,
            Value::Integer(_) => true,
            Value::Real(real) => Value::Real(*real).to_string().len() < 5,
            // Invalid bytes count as SQLite counts them: every byte that does not continue a character.
            Value::Text(bytes) => bytes.iter().take_while(|byte| **byte != 0).filter(|byte| **byte & 0xc0 != 0x80).count() < 5,
            Value::Blob(bytes) => bytes.len() < 5,
        }),
    );
    predicates.insert("name IS NOT NULL".to_owned(), Arc::new(|row| !row[1].is_null()));
    Subject {
        name: "crm",
        dock: b.dock,
        domains: b.domains,
        predicates,
        given: vec![("employee", Untyped(5), 3)],
        models: named(&["rep", "executive", "lean", "unknown"]),
    }
}

/// Text keys without case, two-column keys, filters, nodes with several vessels.
pub(crate) fn ships() -> Subject {
    use Domain::*;
    let mut b = building();
    b.table(
        "assignment",
        &["crew_id", "seq"],
        &[("crew_id", Id(6)), ("seq", Id(2)), ("~imo", MaybeText(SHIPS)), ("~status", MaybeText(STATUS)), ("_port", MaybeText(PORTS))],
    );
    b.table("certificate", &["id"], &[("id", Id(6)), ("crew_id", Maybe(6)), ("name", Any)]);
    b.table("crew_member", &["id"], &[("id", Id(6)), ("name", Any), ("-pay", Any)]);
    b.table("fleet", &["id"], &[("id", Id(4)), ("parent", Maybe(4)), ("open", Id(2))]);
    b.table("job_part", &["id"], &[("id", Id(8)), ("~imo", MaybeText(SHIPS)), ("number", MaybeUntyped(4)), ("part", Any)]);
    b.table("job_reading", &["id"], &[("id", Id(6)), ("part_id", Maybe(8)), ("value", Any)]);
    b.table(
        "maintenance_job",
        &["imo", "number"],
        &[("~imo", Text(SHIPS)), ("number", Untyped(4)), ("done_at", Seconds), ("critical", Maybe(2))],
    );
    b.table("manual_issue", &["manual_id", "edition"], &[("manual_id", Id(3)), ("edition", Untyped(3)), ("class_id", Maybe(3))]);
    b.table("manual_page", &["id"], &[("id", Id(8)), ("manual_id", Maybe(3)), ("edition", MaybeUntyped(3)), ("text", Any)]);
    b.table("noon_report", &["id"], &[("id", Id(4)), ("imo", MaybeText(SHIPS)), ("_port", MaybeText(PORTS))]);
    b.table("port", &["code"], &[("_code", Text(PORTS)), ("name", Any)]);
    b.table("vessel", &["imo"], &[("~imo", Text(SHIPS)), ("fleet_id", Maybe(4)), ("class_id", Maybe(3)), ("name", Any)]);

    b.given("vessel", AttributeType::Text, true);
    let hop = |b: &Building, table: &str, join: &str, filters: &[(&str, Value)], out: &str, recursive| NodeHop {
        hop: b.hop(table, &[join], filters, &[out]),
        recursive,
    };
    b.derived("fleet", "vessel", vec![hop(&b, "vessel", "imo", &[], "fleet_id", false)]);
    b.derived("fleets", "fleet", vec![hop(&b, "fleet", "parent", &[("open", Value::Real(1.0))], "id", true)]);
    b.derived("class", "vessel", vec![hop(&b, "vessel", "imo", &[], "class_id", false)]);

    b.object("fleet", Direction::Download, None, &[]);
    b.object("vessel", Direction::Download, None, &[]);
    b.object(
        "crew_member",
        Direction::TwoWay,
        None,
        &[("assignment", &["crew_id"], "crew_member", &["id"]), ("certificate", &["crew_id"], "crew_member", &["id"])],
    );
    b.object(
        "maintenance_job",
        Direction::TwoWay,
        None,
        &[("job_part", &["imo", "number"], "maintenance_job", &["imo", "number"]), ("job_reading", &["part_id"], "job_part", &["id"])],
    );
    b.object("manual_page", Direction::Download, None, &[]);
    b.object("noon_report", Direction::Upload, None, &[]);
    b.object("port", Direction::Download, None, &[]);

    b.rule("fleet.all", RuleKind::Everyone, Some(("parent IS NULL OR open = 1", &["parent", "open"])), None);
    b.rule("fleet.below", b.path("fleet", &["id"], vec![], "fleets"), None, None);
    b.rule("vessel.fleet", b.path("vessel", &["fleet_id"], vec![], "fleet"), None, None);
    b.rule("vessel.fleets", b.path("vessel", &["fleet_id"], vec![], "fleets"), None, None);
    // The key on the left says how it is compared: without case, though the column on the right is not.
    let reported = vec![b.hop("noon_report", &["imo"], &[], &["imo"])];
    b.rule("vessel.reported", b.path("vessel", &["imo"], reported, "vessel"), None, None);
    let any = ["assignment", "job_part", "maintenance_job", "noon_report"].map(|table| b.reference(table, &["imo"], "vessel", &["imo"]));
    b.rule("vessel.needed", RuleKind::Referenced(any.to_vec()), None, None);
    for (name, status) in [("crew_member.on_board", "on board"), ("crew_member.relief", "joining")] {
        let hops = vec![b.hop("assignment", &["crew_id"], &[("status", Value::text(status))], &["imo"])];
        b.rule(name, b.path("crew_member", &["id"], hops, "vessel"), None, None);
    }
    let own = b.path("maintenance_job", &["imo"], vec![], "vessel");
    b.rule("maintenance_job.own", own.clone(), None, b.window("maintenance_job", "done_at", 30));
    b.rule("maintenance_job.critical", own, Some(("critical = 1", &["critical"])), None);
    let class = vec![b.hop("manual_issue", &["manual_id", "edition"], &[], &["class_id"])];
    b.rule("manual_page.class", b.path("manual_page", &["manual_id", "edition"], class, "class"), None, None);
    // Through the pages' issues to the ships of that class: two hops, the first by two columns.
    let aboard = vec![
        b.hop("manual_issue", &["manual_id", "edition"], &[], &["class_id"]),
        b.hop("vessel", &["class_id"], &[("fleet_id", Value::Integer(1))], &["imo"]),
    ];
    b.rule("manual_page.aboard", b.path("manual_page", &["manual_id", "edition"], aboard, "vessel"), None, None);
    b.rule("noon_report.own", b.path("noon_report", &["imo"], vec![], "vessel"), None, None);
    let ports = ["assignment", "noon_report"].map(|table| b.reference(table, &["port"], "port", &["code"]));
    b.rule("port.needed", RuleKind::Referenced(ports.to_vec()), None, None);
    b.model("deck", None, &["*.fleets", "vessel.needed", "fleet.below"]);
    b.model("engine", Some(&["maintenance_job.*", "manual_page.class"]), &["port.needed"]);

    let mut predicates: BTreeMap<String, Closure> = BTreeMap::new();
    predicates.insert("parent IS NULL OR open = 1".to_owned(), Arc::new(|row| row[1].is_null() || row[2] == Value::Integer(1)));
    predicates.insert("critical = 1".to_owned(), Arc::new(|row| row[3] == Value::Integer(1)));
    Subject {
        name: "ships",
        dock: b.dock,
        domains: b.domains,
        predicates,
        given: vec![("vessel", Text(SHIPS), 3)],
        models: named(&["deck", "engine"]),
    }
}

/// A server schema in which the tables of a definition stand, all columns without a type.
pub(crate) fn schema_of(dock: &Dock) -> Schema {
    let conn = rusqlite::Connection::open_in_memory().unwrap();
    for table in &dock.tables {
        let name = |column: usize| format!("\"{}\"", table.columns[column].name);
        let columns: Vec<String> =
            (0..table.columns.len())
                .map(|column| {
                    if table.key_is_rowid && table.key == [column] { format!("{} INTEGER PRIMARY KEY", name(column)) } else { name(column) }
                })
                .collect();
        let key: Vec<String> = table.key.iter().map(|column| name(*column)).collect();
        let key = if table.key_is_rowid { String::new() } else { format!(", PRIMARY KEY({})", key.join(", ")) };
        conn.execute_batch(&format!("CREATE TABLE \"{}\"({}{key})", table.name, columns.join(", "))).unwrap();
    }
    read_schema(&conn).unwrap()
}
