//! Every problem and warning of `check`: its place, its words, and what it says to write instead.

use dockmaster::model::schema::Schema;
use dockmaster::rules::check::{Checked, check};
use dockmaster::rules::problem::{Problem, SourceFile};
use dockmaster::store::predicate::PredicateChecker;
use dockmaster::store::schema::read_schema;
use rusqlite::Connection;

/// The tables of every case here.
const SCHEMA: &str = "
CREATE TABLE Shippers(ShipperID INTEGER PRIMARY KEY, Name TEXT);
CREATE TABLE Customers(CustomerID TEXT PRIMARY KEY NOT NULL, Name TEXT COLLATE NOCASE, ReferredBy INTEGER REFERENCES Orders(OrderID));
CREATE TABLE Employees(EmployeeID INTEGER PRIMARY KEY, LastName TEXT NOT NULL, Boss INTEGER REFERENCES Employees(EmployeeID), Area TEXT);
CREATE TABLE Orders(
  OrderID INTEGER PRIMARY KEY, CustomerID TEXT REFERENCES Customers(CustomerID), EmployeeID INTEGER, ShipVia INTEGER REFERENCES Shippers(ShipperID),
  OrderDate TEXT, Photo BLOB, Total INTEGER CHECK (Total >= 0), Twice INTEGER AS (Total * 2));
CREATE TABLE \"Order Details\"(
  OrderID INTEGER NOT NULL REFERENCES Orders(OrderID), Line INTEGER NOT NULL, Quantity INTEGER, Bonus INTEGER REFERENCES Orders(OrderID),
  PRIMARY KEY(OrderID, Line));
CREATE TABLE Notes(OrderID INTEGER NOT NULL, Line INTEGER NOT NULL, Text TEXT, PRIMARY KEY(OrderID, Line),
  FOREIGN KEY(OrderID, Line) REFERENCES \"Order Details\"(OrderID, Line));
CREATE TABLE audit_line(at TEXT);
CREATE TABLE german(name TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, area TEXT, measured REAL, seconds INTEGER);
CREATE TABLE lost(id INTEGER PRIMARY KEY, gone INTEGER REFERENCES nowhere(id));
CREATE TABLE typed(id TEXT PRIMARY KEY NOT NULL, OrderID TEXT REFERENCES Orders(OrderID), ByName TEXT REFERENCES Shippers(Name));
CREATE TABLE loose(id TEXT PRIMARY KEY, n INTEGER);
CREATE TABLE ring_a(id INTEGER PRIMARY KEY, c INTEGER REFERENCES ring_c(id));
CREATE TABLE ring_b(id INTEGER PRIMARY KEY, a INTEGER REFERENCES ring_a(id));
CREATE TABLE ring_c(id INTEGER PRIMARY KEY, b INTEGER REFERENCES ring_b(id));
CREATE VIEW Totals AS SELECT OrderID, Total FROM Orders;
CREATE TRIGGER count_orders AFTER INSERT ON \"Order Details\" BEGIN UPDATE Orders SET Total = Total + 1 WHERE OrderID = NEW.OrderID; END;
";

pub(crate) fn schema() -> Schema {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    read_schema(&connection).unwrap()
}

pub(crate) fn checked(text: &str) -> Checked {
    check(&[SourceFile { name: "d".into(), text: text.into() }], &schema(), &PredicateChecker)
}

pub(crate) fn shown(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

/// Compares all cases at once, so that one run tells everything that differs.
fn compare(cases: &[(&str, &str, &[&str])], found: impl Fn(&Checked) -> &[Problem]) {
    let mut wrong = String::new();
    for (what, text, expected) in cases {
        let said = shown(found(&checked(text)));
        if said != *expected {
            wrong.push_str(&format!("{what}: expected {expected:#?}, said {said:#?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn problems(cases: &[(&str, &str, &[&str])]) {
    compare(cases, |checked| &checked.problems);
}

#[test]
fn the_file_itself() {
    problems(&[
        ("version", "reference = []\n", &["d:1:1 the definition has no version   begin with  version = 1"]),
        ("newer", "version = 2\n", &["d:1:11 this program reads definitions of version 1   version = 1"]),
        ("not toml", "version = 1\n[object.Orders\n", &["d:2:15 unclosed table, expected `]`"]),
        ("key", "version = 1\nrefrence = []\n", &["d:2:1 unknown key `refrence` in the definition   did you mean reference?"]),
        (
            "key of an object",
            "version = 1\n[object.Shippers]\nvisible = 'everyone'\ndirecton = \"download\"\n",
            &["d:4:1 unknown key `directon` in [object.Shippers]   did you mean direction?"],
        ),
        ("string", "version = 1\n[server]\nname = 5\n", &["d:3:8 `name` is an integer, expected a string"]),
        ("list", "version = 1\nreference = \"Shippers\"\n", &["d:2:13 `reference` is a string, expected a list   reference = [\"..\"]"]),
        ("address", "version = 1\n[server]\nlisten = \"nowhere\"\n", &["d:3:10 listen: `nowhere` is not an address   \"0.0.0.0:40400\""]),
        ("number", "version = 1\n[server]\nkeep_days = \"7\"\n", &["d:3:13 `keep_days` takes a whole number from 0 to 36500"]),
        ("time", "version = 1\n[server]\nday_starts = \"25:00\"\n", &["d:3:14 day_starts: `25:00` is not a time of day   \"03:00\""]),
        (
            "merge errors",
            "version = 1\n[server]\nmerge_errors = \"skip\"\n",
            &["d:3:16 merge_errors: `skip` is none of hold, stop, disable-node   \"hold\""],
        ),
        (
            "flag",
            "version = 1\n[object.Shippers]\nvisible = 'everyone'\nwritable = \"yes\"\n",
            &["d:4:12 `writable` is a string, expected true or false"],
        ),
        ("table", "version = 1\nnode = 3\n", &["d:2:8 [node] is an integer, expected a table"]),
    ]);
}

/// Two lookup tables, one of which refers to the object of the case.
const LOOKUPS: &str = "version = 1\nreference = [\"Shippers\", \"Customers\"]\ntable.Customers.dangling = [\"ReferredBy\"]\n";

#[test]
fn names_that_do_not_exist() {
    let with = |rest: &str| format!("{LOOKUPS}{rest}");
    problems(&[
        (
            "reference",
            "version = 1\nreference = [\"Shipers\"]\n",
            &["d:2:14 reference: there is no table Shipers   did you mean Shippers?"],
        ),
        (
            "object",
            "version = 1\n[object.Orderz]\nvisible = 'everyone'\n",
            &["d:2:9 Orderz: there is no table Orderz   did you mean Orders?"],
        ),
        (
            "view",
            "version = 1\nreference = [\"Totals\"]\n",
            &["d:2:14 reference: Totals is a view, only tables are replicated   name the tables under it"],
        ),
        (
            "column (product 1)",
            &with("[node]\nemployee = { type = \"integer\" }\n[object.Orders]\nvisible.own = 'Orders.EmployeId = node.employee'\n"),
            &["d:7:23 Orders.own: table Orders has no column EmployeId   did you mean EmployeeID?"],
        ),
        (
            "attribute (product 2)",
            &with(
                "[node]\nemployee = { type = \"integer\" }\nboss = 'node.employee -> Employees(EmployeeID).Boss'\n[object.Orders]\nvisible.own = 'Orders.EmployeeID = node.boses'\n",
            ),
            &["d:8:41 Orders.own: a node has no `boses`   [node] declares employee, boss"],
        ),
        (
            "referenced",
            "version = 1\n[object.Shippers]\nvisible.used = 'referenced by Order'\n",
            &["d:3:31 Shippers.used: there is no object Order"],
        ),
        (
            "model",
            "version = 1\nreference = [\"Shippers\"]\n[model.rep]\nwithout = [\"Shippers.visble\"]\n",
            &["d:4:12 model rep: no rule is called Shippers.visble   did you mean Shippers.visible?"],
        ),
        (
            "table options",
            "version = 1\nreference = [\"Shippers\"]\n[table.Shipers]\nomit = []\n[table.Orders]\nomit = []\n[table.Shippers]\nomit = [\"Nam\"]\n",
            &[
                "d:3:8 there is no table Shipers   did you mean Shippers?",
                "d:5:8 table Orders is in no object, no node gets it   add it to `reference` or to an object, or take this out",
                "d:8:9 omit: table Shippers has no column Nam   did you mean Name?",
            ],
        ),
        (
            "rule of another table",
            "version = 1\n[node]\nx = { type = \"integer\" }\n[object.Shippers]\nvisible.own = 'Employees.EmployeeID = node.x'\n",
            &["d:5:16 Shippers.own: the rule begins at Employees, the object's table is Shippers   Shippers.column -> Employees(..).."],
        ),
    ]);
}

#[test]
fn r38_tables_that_cannot_be_told_apart() {
    problems(&[
        (
            "no key (product 6)",
            "version = 1\nreference = [\"Shippers\", \"audit_line\"]\n",
            &["d:2:26 table audit_line has no primary key, its rows cannot be told apart   add one, or leave the table out"],
        ),
        (
            "twice",
            "version = 1\nreference = [\"Shippers\"]\n[object.shippers]\nvisible = 'everyone'\n",
            &["d:3:9 object Shippers is declared twice"],
        ),
        (
            "two objects",
            "version = 1\nreference = [\"Shippers\"]\n[object.other]\ntable = \"Shippers\"\nvisible = 'everyone'\n",
            &["d:4:9 table Shippers is in two objects, Shippers and other   a table travels with one object: take it out of one of them"],
        ),
        (
            "no rule",
            "version = 1\n[object.Shippers]\n",
            &[
                "d:2:1 object Shippers has no rule: nobody would see it   visible = 'everyone', visible = 'nobody', visible.needed = 'referenced', or visible.own = 'Table.column = node.NAME'",
            ],
        ),
        (
            "omitted key",
            "version = 1\nreference = [\"Shippers\"]\n[table.Shippers]\nomit = [\"ShipperID\"]\n",
            &["d:4:9 Shippers.ShipperID is a key column, it cannot be omitted   nodes tell rows apart by it"],
        ),
        (
            "omitted NOT NULL (product 8)",
            "version = 1\n[object.Employees]\nvisible = 'everyone'\n[table.Employees]\nomit = [\"LastName\"]\n",
            &[
                "d:5:9 Employees.LastName is omitted but NOT NULL: a row inserted on a node cannot merge   keep it, or direction = \"download\"",
            ],
        ),
    ]);
}

#[test]
fn members_need_one_foreign_key() {
    let members = |list: &str| format!("{LOOKUPS}[object.Orders]\nvisible = 'everyone'\nmembers = [{list}]\n");
    problems(&[
        (
            "two (product 7)",
            &members("\"Order Details\""),
            &[
                "d:6:12 member Order Details has two foreign keys to Orders (OrderID, Bonus)   write { table = \"Order Details\", on = \"OrderID\" }",
            ],
        ),
        ("on", &members("{ table = \"order details\", on = \"orderid\" }"), &[]),
        (
            "on nothing",
            &members("{ table = \"Order Details\", on = \"Quantity\" }"),
            &[
                "d:6:44 member Order Details has no foreign key over Quantity to a table of Orders   its foreign keys: \"Order Details\".OrderID -> Orders, \"Order Details\".Bonus -> Orders; or make it an object with a rule of its own",
            ],
        ),
        (
            "none",
            &members("\"Employees\""),
            &[
                "d:6:12 member Employees has no foreign key to Orders or its members   its foreign keys: Employees.Boss -> Employees; or make it an object with a rule of its own",
            ],
        ),
        ("grandchild, written first", &members("\"Notes\", { table = \"Order Details\", on = \"OrderID\" }"), &[]),
        ("types", &members("\"typed\""), &["d:6:12 member typed: typed.OrderID is text, Orders.OrderID integer: they can never be equal"]),
        ("shape", &members("5"), &["d:6:12 a member is a table's name   \"payment\"  or  { table = \"payment\", on = \"sale_id\" }"]),
    ]);
}

#[test]
fn r35_sides_that_can_never_be_equal() {
    let rule = |rule: &str| {
        format!(
            "{LOOKUPS}[node]\nnumber = {{ type = \"integer\" }}\nname = {{ type = \"text\" }}\narea = 'node.number -> Employees(EmployeeID).Area'\n[object.Orders]\nvisible.own = '{rule}'\n"
        )
    };
    problems(&[
        (
            "derived (product 3)",
            &rule("Orders.EmployeeID = node.area"),
            &["d:9:23 Orders.own: EmployeeID is integer, node.area (from Employees.Area) text: they can never be equal"],
        ),
        (
            "given",
            &rule("Orders.CustomerID = node.number"),
            &["d:9:23 Orders.own: CustomerID is text, node.number integer: they can never be equal"],
        ),
        (
            "join",
            &rule("Orders.CustomerID -> Employees(EmployeeID).EmployeeID = node.number"),
            &["d:9:47 Orders.own: CustomerID is text, Employees.EmployeeID integer: they can never be equal"],
        ),
        (
            "literal",
            &rule("Orders.OrderID -> \"Order Details\"(OrderID, Quantity = \"many\").Line = node.number"),
            &["d:9:70 Orders.own: Quantity is integer, 'many' can never be equal to it"],
        ),
        (
            "collation",
            &rule("Orders.CustomerID -> Customers(Name).CustomerID = node.name"),
            &["d:9:47 Orders.own: CustomerID compares by BINARY, Customers.Name by NOCASE   declare both columns with the same collation"],
        ),
        ("any type", &rule("Orders.Photo = node.number"), &[]),
        (
            "columns",
            &rule("Orders.(OrderID, EmployeeID) -> \"Order Details\"(OrderID).Line = node.number"),
            &["d:9:48 Orders.own: 2 columns stand on the left, Order Details(..) joins by 1 column"],
        ),
        (
            "two values",
            &rule("Orders.(OrderID, EmployeeID) = node.number"),
            &["d:9:24 Orders.own: 2 columns stand on the left, node.number is one value   end with one column"],
        ),
        (
            "long",
            &rule(&format!("Orders.OrderID {}= node.number", "-> Orders(OrderID).OrderID ".repeat(9))),
            &["d:9:247 Orders.own: 9 joins, at most 8 are followed"],
        ),
        (
            "no key on the way",
            &rule("Orders.OrderDate -> audit_line(at).at = node.name"),
            &["d:9:36 table audit_line has no primary key, its rows cannot be told apart   add one, or leave the table out"],
        ),
        (
            "parse",
            &rule("Orders.EmployeeID = number"),
            &[
                "d:9:36 Orders.own: a rule ends with `= node.NAME`, not `number`   declare the value under [node], or compare with a literal in `where`",
            ],
        ),
    ]);
}

#[test]
fn r9_r36_closure_and_circles() {
    let with = |rest: &str| {
        format!("version = 1\n[node]\nx = {{ type = \"integer\" }}\n[object.Orders]\nvisible.own = 'Orders.EmployeeID = node.x'\n{rest}")
    };
    let shippers = |rest: &str| with(&format!("dangling = [\"Orders.CustomerID\"]\n[object.Shippers]\n{rest}\n"));
    problems(&[
        (
            "not replicated",
            &with("[object.Shippers]\nvisible = 'referenced'\n"),
            &[
                "d:4:1 nodes get Orders, but not the table Customers to which it refers (Orders.CustomerID)   add to reference:  \"Customers\"      or accept it:  dangling = [\"Orders.CustomerID\"]",
            ],
        ),
        (
            "open (product 4)",
            &shippers("visible.own = 'Shippers.ShipperID = node.x'"),
            &[
                "d:4:1 a node may see a row of Orders but not the Shippers row it refers to (Orders.ShipVia)   add to [object.Shippers]:  visible.needed = 'referenced'      or accept it:  dangling = [\"Orders.ShipVia\"]",
            ],
        ),
        (
            "narrowed",
            &shippers("visible.needed = { rule = 'referenced', where = \"Name IS NOT NULL\" }"),
            &[
                "d:4:1 a node may see a row of Orders but not the Shippers row it refers to (Orders.ShipVia)   Shippers.needed is narrowed by its where or window: take that out, or accept it:  dangling = [\"Orders.ShipVia\"]",
            ],
        ),
        (
            "a wrong rule may be the one that closes it",
            &shippers("visible.needed = 'referenced by Order'"),
            &["d:8:33 Shippers.needed: there is no object Order   did you mean Orders?"],
        ),
        (
            "a wrong path cannot",
            &shippers("visible.own = 'Shippers.Nam = node.x'"),
            &[
                "d:4:1 a node may see a row of Orders but not the Shippers row it refers to (Orders.ShipVia)   add to [object.Shippers]:  visible.needed = 'referenced'      or accept it:  dangling = [\"Orders.ShipVia\"]",
                "d:8:25 Shippers.own: table Shippers has no column Nam   did you mean Name?",
            ],
        ),
        (
            "referenced by another",
            &shippers("visible.needed = 'referenced by typed'\n[object.typed]\nvisible = 'everyone'\ndangling = [\"typed.OrderID\"]"),
            &[
                "d:4:1 a node may see a row of Orders but not the Shippers row it refers to (Orders.ShipVia)   [object.Shippers] says 'referenced by typed': add Orders      or accept it:  dangling = [\"Orders.ShipVia\"]",
                "d:8:18 Shippers.needed: typed.ByName refers to Shippers.Name, which is not unique   make the columns referred to UNIQUE",
            ],
        ),
        (
            "circle (product 5)",
            &with("dangling = [\"Orders.ShipVia\"]\n[object.Customers]\nvisible.ordered = 'referenced by Orders'\n")
                .replace("Orders.EmployeeID = node.x", "referenced by Customers"),
            &[
                "d:8:19 circle: Customers 'referenced by Orders', Orders 'referenced by Customers'   give one of them a rule of its own in its place, make it 'everyone', or accept its foreign key as dangling",
            ],
        ),
        (
            "circle of three, from the rule written last",
            "version = 1\n[object.ring_a]\nvisible = 'referenced by ring_b'\n[object.ring_b]\nvisible = 'referenced by ring_c'\n[object.ring_c]\nvisible = 'referenced by ring_a'\n",
            &[
                "d:7:11 circle: ring_c 'referenced by ring_a', ring_a 'referenced by ring_b', ring_b 'referenced by ring_c'   give one of them a rule of its own in its place, make it 'everyone', or accept its foreign key as dangling",
            ],
        ),
        (
            "itself",
            "version = 1\n[node]\nx = { type = \"integer\" }\n[object.Employees]\nvisible.own = 'Employees.EmployeeID = node.x'\n",
            &[
                "d:4:1 a node may see a row of Employees but not the Employees row it refers to (Employees.Boss): a table that refers to itself   show all of it:  visible = 'everyone'      or accept it:  dangling = [\"Employees.Boss\"]",
            ],
        ),
        (
            "circle of one",
            "version = 1\n[object.Employees]\ndangling = [\"Employees.Boss\"]\nvisible.own = 'referenced by Employees'\n",
            &[
                "d:4:15 circle: Employees 'referenced by Employees'   rows of Employees cannot be shown by rows of Employees: visible = 'everyone', or a rule of its own and dangling",
            ],
        ),
        (
            "nowhere",
            "version = 1\n[object.lost]\nvisible = 'everyone'\n",
            &["d:2:1 lost.gone refers to nowhere(id), which does not exist   create it, or accept it:  dangling = [\"lost.gone\"]"],
        ),
        (
            "nowhere, in reference",
            "version = 1\nreference = [\"lost\"]\n",
            &[
                "d:2:14 lost.gone refers to nowhere(id), which does not exist   create it, or accept it:  [table.lost]  dangling = [\"lost.gone\"]",
            ],
        ),
        ("nowhere, accepted", "version = 1\nreference = [\"lost\"]\n[table.lost]\ndangling = [\"gone\"]\n", &[]),
        (
            "nobody refers",
            "version = 1\n[object.german]\nvisible = 'referenced'\n",
            &["d:3:11 german.visible: no object has a foreign key to german   declare a foreign key, or give it a rule of its own"],
        ),
        ("omitted foreign key", "version = 1\nreference = [\"lost\"]\n[table.lost]\nomit = [\"gone\"]\n", &[]),
        (
            "no foreign key",
            "version = 1\nreference = [\"german\"]\n[table.german]\ndangling = [\"area\"]\n",
            &["d:4:13 german: dangling: german.area is no foreign key   german has no foreign keys"],
        ),
        ("accepted", &with("dangling = [\"Orders.ShipVia\", \"Orders.CustomerID\"]\n"), &[]),
        (
            "foreign table",
            &with("dangling = [\"Orders.ShipVia\", \"Orders.CustomerID\", \"lost.gone\"]\n"),
            &["d:6:52 Orders: dangling: lost is not one of its tables"],
        ),
        (
            "no table",
            "version = 1\n[object.lost]\nvisible = 'nobody'\ndangling = [\"gone\"]\n",
            &[
                "d:2:1 lost.gone refers to nowhere(id), which does not exist   create it, or accept it:  dangling = [\"lost.gone\"]",
                "d:4:13 lost: dangling: of which table?   dangling = [\"lost.gone\"]",
            ],
        ),
    ]);
}

#[test]
fn node_attributes_windows_predicates_and_policies() {
    let object = |rest: &str| format!("version = 1\n[object.Orders]\ndangling = [\"Orders.ShipVia\", \"Orders.CustomerID\"]\n{rest}\n");
    problems(&[
        (
            "attributes",
            "version = 1\n[node]\na = 'node.b -> Employees(EmployeeID).Boss'\nb = 'node.a -> Employees(EmployeeID).Boss'\nc = { type = \"int\" }\nd = {}\ne = 7\nf = { type = \"text\", must_exist = \"Employees.EmployeeID\" }\ng = { type = \"text\", must_exist = \"Employees\" }\nh = 'node.c -> Employees(EmployeeID).(Boss, Area)'\ni = 'node.zz -> Employees(EmployeeID).Boss'\nj = 'Employees.Boss'\n",
            &[
                "d:3:11 circle: node.a is made from node.b, which is made from it   begin one of them at an attribute with a type",
                "d:4:11 circle: node.b is made from node.a, which is made from it   begin one of them at an attribute with a type",
                "d:5:14 node.c: there is no type `int`   did you mean integer?",
                "d:6:1 node attribute d has no type   type = \"integer\"  or  type = \"text\"",
                "d:7:5 node attribute e is neither a table nor a path   e = { type = \"integer\" }   or   e = 'node.other -> table(column).column'",
                "d:8:46 node.f is text, Employees.EmployeeID integer: they can never be equal",
                "d:9:35 node.g: must_exist takes one column   must_exist = \"Employees.EmployeeID\"",
                "d:10:45 node.h: a path from a node goes on with one column",
                "d:11:11 node.i: a node has no `zz`   [node] declares a, b, c, d, f, g, h, i, j",
                "d:12:6 node.j: the path of a node attribute begins with node.NAME, not `Employees`   node.employee -> employee(id).position_id",
            ],
        ),
        (
            "window",
            &object("visible = 'everyone'\nwindow = 'OrderDat within 5 days'"),
            &["d:5:11 Orders: table Orders has no column OrderDat   did you mean OrderDate?"],
        ),
        (
            "window form",
            &object("visible = { rule = 'everyone', window = 'OrderDate 5 days' }"),
            &["d:4:52 Orders.visible: expected `within`, found `5`   column within 90 days"],
        ),
        (
            "window type",
            &object("visible = 'everyone'\nwindow = 'Photo within 5 days'"),
            &["d:5:11 Orders: Photo is a BLOB, a window needs dates   dates like 2024-07-04 or 2024-07-04 09:30:00"],
        ),
        (
            "where",
            &object("visible = { rule = 'everyone', where = \"Totl > 1\" }"),
            &["d:4:41 Orders.visible: where: there is no column Totl   did you mean Total?"],
        ),
        (
            "where with escapes",
            &object("visible = { rule = 'everyone', where = \"\\\"Total\\\" > 1 AND Totl\" }"),
            &["d:4:59 Orders.visible: where: there is no column Totl   did you mean Total?"],
        ),
        (
            "nobody",
            &object("visible.a = 'everyone'\nvisible.b = 'nobody'"),
            &["d:5:13 Orders.b: 'nobody' stands alone   take it out, or the other rules"],
        ),
        (
            "direction",
            &object("visible = 'everyone'\ndirection = \"twoway\""),
            &["d:5:13 Orders: there is no direction `twoway`   did you mean two-way?"],
        ),
        ("rule name", &object("visible.\"a.b\" = 'everyone'"), &["d:4:9 `a.b` cannot name a rule   letters, digits, `_` and `-`"]),
        (
            "policies",
            &object(
                "visible = 'everyone'\nconflict = \"sum\"\n[table.Orders]\nconflict = \"client-win\"\nkeys = \"blok\"\n[table.Orders.column.OrderDate]\nconflict = \"sum\"\n[table.Orders.column.Totl]\nconflict = \"sum\"\n[table.Orders.column.Total]\nconflict = \"newest by Dat\"",
            ),
            &[
                "d:5:12 Orders: sum adds up differences, so it stands at a column of numbers   [table.Orders.column.NAME]  conflict = \"sum\"",
                "d:7:12 Orders: there is no conflict policy `client-win`   did you mean client-wins?",
                "d:8:8 Orders: there is no key source `blok`   did you mean block?",
                "d:10:12 Orders.OrderDate: sum adds up differences, so it stands at a column of numbers   [table.Orders.column.NAME]  conflict = \"sum\"",
                "d:11:22 [table.Orders]: table Orders has no column Totl   did you mean Total?",
                "d:14:12 Orders.Total: newest by: table Orders has no column Dat",
            ],
        ),
        (
            "delete, direction of a column",
            &object(
                "visible = 'everyone'\n[table.Orders]\ndelete = \"win\"\n[table.Orders.column.OrderDate]\ndirection = \"upload\"\n[table.Orders.column.OrderID]\ndirection = \"download\"\n[table.Orders.column.Total]\ndirection = \"two-way\"\n[table.Orders.column.Photo]\ndirections = \"x\"",
            ),
            &[
                "d:6:10 Orders: delete: `win` says nothing about a row that the other side changed   did you mean wins?",
                "d:8:13 Orders.OrderDate: there is no direction `upload` of a column   \"download\" or \"two-way\"",
                "d:10:13 Orders.OrderID is a key column: a node could insert no row if only the server gave it   direction = \"download\"  at the object",
                "d:14:1 unknown key `directions` in [table.Orders.column.Photo]   did you mean direction?",
            ],
        ),
        (
            "keys",
            "version = 1\nreference = [\"german\"]\n[table.german]\nkeys = \"block\"\n",
            &["d:4:8 german: keys = \"block\" replaces integers that are taken, its key is no INTEGER PRIMARY KEY   keys = \"own\""],
        ),
    ]);
}

#[test]
fn r11_r31_r38_warnings() {
    let trigger = "d:3:1 trigger count_orders on Order Details writes Orders.Total, which nodes change too: it runs on the server only, at the merge   [table.Orders.column.Total]  direction = \"download\",  or let nodes not change it";
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "author, trigger",
            "version = 1\nreference = [\"Shippers\"]\n[object.Orders]\nmembers = [{ table = \"Order Details\", on = \"OrderID\" }]\nvisible.t = 'Orders.OrderID -> \"Order Details\"(OrderID).Quantity = node.x'\ndangling = [\"Orders.CustomerID\"]\n[node]\nx = { type = \"integer\" }\ny = { type = \"text\" }\n",
            &[
                "d:3:1 \"Order Details\".Bonus must refer to the same Orders as its row does, or a node may not have the Orders row   if it can be another one:  dangling = ['\"Order Details\".Bonus']",
                "d:3:1 a row of Orders inserted on a node is not visible to its author by itself   insert it together with a row of Order Details in one transaction, or add an owner column",
                trigger,
                "d:9:1 no rule uses node.y   take it out, or write a rule that ends with it",
            ],
        ),
        (
            "sum",
            "version = 1\n\n[object.Orders]\nvisible = 'everyone'\ndangling = [\"Orders.CustomerID\", \"Orders.ShipVia\"]\n[table.Orders.column.total]\nconflict = \"sum\"\n",
            &[
                trigger,
                "d:7:12 Orders.Total adds up, but CHECK (Total >= 0) can refuse the sum of two changes that were each right   drop the CHECK, or let a person decide:  conflict = \"manual\"",
            ],
        ),
        (
            "what only the server changes is settled",
            "version = 1\n\n[object.Orders]\nvisible = 'everyone'\ndangling = [\"Orders.CustomerID\", \"Orders.ShipVia\"]\n[table.Orders.column.total]\ndirection = \"download\"\n",
            &[],
        ),
        (
            "null key",
            "version = 1\nreference = [\"loose\"]\n",
            &["d:2:14 key column loose.id allows NULL: a row with a NULL key stops the table   declare it NOT NULL"],
        ),
        (
            "private",
            "version = 1\n[object.Shippers]\ndirection = \"upload\"\nvisible = 'nobody'\n",
            &["d:4:11 rows of Shippers are private: a node that is replaced or extracted again does not get them back"],
        ),
        (
            "upload to all",
            "version = 1\n[object.Shippers]\ndirection = \"upload\"\nvisible = 'everyone'\n",
            &[
                "d:4:11 Shippers.visible: every new node gets all rows of Shippers, though later ones are not sent down   'nobody', or a rule that says whose rows they are",
            ],
        ),
        (
            "nobody",
            "version = 1\n[object.Shippers]\nvisible = 'nobody'\n",
            &[
                "d:2:1 a row of Shippers inserted on a node is sent to the server and vanishes from the node   direction = \"upload\" keeps it on the node that wrote it",
            ],
        ),
        (
            "fraction of a day",
            "version = 1\n[object.german]\nvisible = 'everyone'\nwindow = 'measured within 5 days'\n",
            &[
                "d:2:1 german: window over measured, declared REAL: only text like 2024-07-04 and whole seconds since 1970 are dates, other rows stay   store dates as text",
            ],
        ),
        ("seconds", "version = 1\n[object.german]\nvisible = 'everyone'\nwindow = 'seconds within 5 days'\n", &[]),
        (
            "collation",
            "version = 1\n[object.Customers]\nvisible = { rule = 'everyone', where = \"Name = 'x'\" }\ndangling = [\"Customers.ReferredBy\"]\ngive_away = true\n",
            &[
                "d:3:40 Customers.visible: where compares Name by bytes, its collation NOCASE does not count here   write  Name COLLATE NOCASE = ..",
            ],
        ),
        (
            "pattern",
            "version = 1\nreference = [\"Shippers\"]\n[model.m]\nonly = [\"Shippers.visible\"]\n",
            &["d:4:9 model m: Shippers.visible names no rule with a path   'everyone' and 'referenced' rules hold beside `only`"],
        ),
    ];
    compare(cases, |checked| {
        assert_eq!(shown(&checked.problems), Vec::<String>::new());
        &checked.warnings
    });
}
