//! What a definition without problems becomes: captured and sent columns, spelling, several files; and random definitions.

use crate::definition_messages::{checked, schema, shown};
use dockmaster::model::dock::{AttributeSource, RuleKind};
use dockmaster::model::merge_rules::{ConflictPolicy, DeletePolicy, KeySource, MergeRules};
use dockmaster::rules::check::{check, join, split};
use dockmaster::rules::problem::SourceFile;
use dockmaster::store::predicate::PredicateChecker;

const WHOLE: &str = "version = 1
reference = [\"shippers\"]
[server]
name = \"Main\"
database = \"hq.db\"
day_starts = \"04:30\"
[node]
number = { type = \"integer\", must_exist = \"employees.employeeid\", many = true }
area = 'node.number ->* Employees(Boss).EmployeeID -> Employees(EmployeeID).Area'
[object.orders]
members = [{ table = \"order details\", on = \"orderid\" }, \"notes\"]
window = 'orderdate within 30 days'
conflict = \"newest by OrderDate\"
dangling = [\"orders.customerid\"]
visible.own = 'orders.employeeid = node.number'
visible.area = { rule = 'Orders.EmployeeID -> employees(employeeid, boss = 3).area = node.area', where = \"twice > 4\" }
[table.\"order details\"]
dangling = [\"Bonus\"]
conflict = \"manual\"
[table.orders]
omit = [\"photo\", \"employeeid\"]
keys = \"block\"
[model.m]
only = [\"orders.own\"]
";

#[test]
fn r36_what_is_captured_and_what_is_sent() {
    // `newest by OrderDate` does not fit the members, which have no such column.
    let whole = checked(WHOLE);
    let newest = ["Order Details", "Notes"].map(|table| format!("d:13:12 {table}: newest by: table {table} has no column OrderDate"));
    assert_eq!(shown(&whole.problems), newest);
    assert!(whole.dock.is_none());
    let whole = checked(&WHOLE.replace("newest by OrderDate", "client-wins"));
    assert_eq!(shown(&whole.problems), Vec::<String>::new());
    let dock = whole.dock.unwrap();
    let names: Vec<&str> = dock.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["Employees", "Notes", "Order Details", "Orders", "Shippers"]);
    let columns = |table: &str| -> Vec<(&str, bool)> {
        dock.tables[dock.table(table).unwrap()].columns.iter().map(|column| (column.name.as_str(), column.sent)).collect()
    };
    // Photo is omitted and used by nothing; EmployeeID and the generated Twice are used by rules, so held here and sent to nobody.
    let orders = [
        ("OrderID", true),
        ("CustomerID", true),
        ("EmployeeID", false),
        ("ShipVia", true),
        ("OrderDate", true),
        ("Total", true),
        ("Twice", false),
    ];
    assert_eq!(columns("Orders"), orders);
    assert_eq!(columns("Employees"), [("EmployeeID", false), ("Boss", false), ("Area", false)], "only what rules read");
    let orders = &dock.tables[dock.table("Orders").unwrap()];
    assert_eq!((orders.key.as_slice(), orders.key_is_rowid), ([0].as_slice(), true));
    assert_eq!(orders.dangling, [[1]]);
    let object = &dock.objects[1];
    assert_eq!((object.name.as_str(), object.members.len(), object.window.as_ref().unwrap().column), ("Orders", 2, 4));
    let notes = dock.tables[dock.table("Notes").unwrap()].member_of.as_ref().unwrap();
    assert_eq!((notes.to_table, notes.columns.as_slice(), notes.to_columns.as_slice()), (2, [0, 1].as_slice(), [0, 1].as_slice()));
    let area = dock.rules.iter().find(|rule| rule.name == "Orders.area").unwrap();
    assert_eq!(area.predicate.as_ref().unwrap().columns, [6]);
    let RuleKind::Path(path) = &area.kind else { panic!("{area:?}") };
    assert_eq!((path.start.as_slice(), path.hops[0].filters[0].0, path.attribute), ([2].as_slice(), 1, 1));
    let AttributeSource::Given { must_exist, many, .. } = &dock.attributes[0].source else { panic!() };
    assert_eq!((*must_exist, *many), (Some((0, 0)), true));
    let AttributeSource::Derived { hops, .. } = &dock.attributes[1].source else { panic!() };
    assert_eq!((hops.len(), hops[0].recursive, hops[1].recursive, hops[1].hop.out[0]), (2, true, false, 2));
    assert_eq!(dock.models[0].only.as_deref(), Some(["Orders.own".to_owned()].as_slice()), "the declared spelling");
    assert_eq!((whole.settings.server.name.as_str(), whole.settings.server.day_starts_minutes), ("Main", 270));
    assert_eq!(whole.keys, [("Orders".to_owned(), KeySource::Block)]);
    // The last policy that fits holds: the table's own stands after the object's.
    let details: Vec<&ConflictPolicy> =
        whole.conflicts.iter().filter(|rule| rule.table == "Order Details").map(|rule| &rule.policy).collect();
    assert_eq!(details, [&ConflictPolicy::ClientWins, &ConflictPolicy::Manual]);
}

#[test]
fn files_are_joined_and_taken_apart_again() {
    let file = |name: &str, text: &str| SourceFile { name: name.into(), text: text.into() };
    let main = "version = 1\ninclude = [\"objects/*.toml\"]\n#: file 3 x\n";
    let files = [file("dockmaster.toml", main), file("objects/a b.toml", "[object.Shippers]\nvisible = 'everyon'\n"), file("empty", "")];
    assert_eq!(split(&join(&files)), files);
    assert_eq!(split("version = 1\n"), [file("dockmaster.toml", "version = 1\n")]);
    assert_eq!(split("#: file 99 x\nshort"), [file("dockmaster.toml", "#: file 99 x\nshort")]);
    let found = check(&files, &schema(), &PredicateChecker);
    assert_eq!(
        shown(&found.problems),
        [
            "objects/a b.toml:2:19 Shippers.visible: expected `.` and a column, found the end   a rule begins with Table.column, or is everyone, nobody or referenced"
        ]
    );
    let object = "[object.Shippers]\nvisible = 'everyone'\n";
    let twice = [file("d", &format!("version = 1\n{object}")), file("e", &format!("[server]\n{object}"))];
    let found = check(&twice, &schema(), &PredicateChecker);
    assert_eq!(shown(&found.problems), ["e:1:2 `server` belongs in the main file", "e:2:9 object Shippers is declared twice"]);
}

#[test]
fn t8_random_definitions_never_panic() {
    let lines: Vec<&str> = WHOLE.lines().collect();
    let pieces = [
        "'",
        "\"",
        "=",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        "Orders",
        "visible",
        "node.number",
        " -> ",
        "->*",
        "(",
        ")",
        "5",
        "ä",
        "\\",
        "\u{0}",
        "everyone",
        "\n",
    ];
    let seed = crate::harness::seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let schema = schema();
    for _ in 0..1_500 {
        // Lines dropped and doubled; then pieces thrown in.
        let mut text: Vec<String> =
            lines.iter().flat_map(|line| std::iter::repeat_n((*line).to_owned(), [0, 1, 1, 1, 1, 2][random.usize(0..6)])).collect();
        for _ in 0..random.usize(0..3) {
            if let Some(line) = (!text.is_empty()).then(|| random.usize(0..text.len())) {
                let characters: Vec<char> = text[line].chars().collect();
                let at = random.usize(0..=characters.len());
                let mut changed: String = characters[..at].iter().collect();
                changed.push_str(pieces[random.usize(0..pieces.len())]);
                changed.extend(characters.iter().skip(at + random.usize(0..3)));
                text[line] = changed;
            }
        }
        let text = text.join("\n");
        let checked = check(&[SourceFile { name: "d".into(), text: text.clone() }], &schema, &PredicateChecker);
        let last = text.lines().count() as u32 + 1;
        assert!(checked.problems.iter().chain(&checked.warnings).all(|problem| (1..=last).contains(&problem.line)), "{text}");
        assert_eq!(checked.dock.is_some(), checked.problems.is_empty(), "{text}");
    }
}

/// R11, R43: what the definition says of a table's merge is in the rules that server and node go by.
#[test]
fn r11_r43_the_rules_of_the_merge_are_what_the_definition_says() {
    let text = "version = 1\nreference = [\"Shippers\"]\n[object.Orders]\nvisible = 'everyone'\ndangling = [\"Orders.CustomerID\"]\n\
                [table.orders]\ndelete = \"resurrect\"\nconflict = \"client-wins\"\n[table.orders.column.total]\ndirection = \"download\"\n\
                [table.orders.column.orderdate]\nconflict = \"manual\"\ndirection = \"two-way\"\n\
                [table.Shippers]\ndelete = \"wins\"\n";
    let found = checked(text);
    assert_eq!(shown(&found.problems), Vec::<String>::new());
    let dock = found.dock.unwrap();
    let of = |table: &str| dock.tables[dock.table(table).unwrap()].merge.clone();
    let orders = of("Orders");
    assert_eq!((&orders.policy, orders.delete), (&ConflictPolicy::ClientWins, DeletePolicy::Resurrect));
    assert_eq!(orders.download_only, ["Total"], "the declared spelling");
    assert!(orders.is_download_only("TOTAL") && !orders.is_download_only("OrderDate"));
    assert_eq!(orders.policy_of("OrderDate"), &ConflictPolicy::Manual);
    assert_eq!(of("Shippers"), MergeRules::default());
}
