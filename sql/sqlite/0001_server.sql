-- Dockmaster's tables in a server database (SQLite). What each is for stands in sql/README.md.
-- None of them has a constraint that a statement of the user could run into: an outer conflict clause would override ours.

CREATE TABLE IF NOT EXISTS dock_meta (name TEXT PRIMARY KEY, value TEXT);

CREATE TABLE IF NOT EXISTS dock_txn_log (
    id  INTEGER PRIMARY KEY AUTOINCREMENT,
    at  REAL DEFAULT (julianday('now')),
    tbl INTEGER,
    op  TEXT,
    c1
);

CREATE TABLE IF NOT EXISTS dock_tail (position INTEGER, nonce TEXT, previous TEXT);

CREATE TABLE IF NOT EXISTS dock_capture (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    table_name TEXT,
    columns    TEXT,
    key        TEXT,
    shape      TEXT,
    triggers   TEXT,
    active     INTEGER,
    stopped    TEXT
);

CREATE TABLE IF NOT EXISTS dock_definition (
    revision    INTEGER PRIMARY KEY,
    text        TEXT,
    deployed_at TEXT,
    dock        TEXT,
    schema      TEXT
);

CREATE TABLE IF NOT EXISTS dock_node (
    name        TEXT PRIMARY KEY,
    state       TEXT,
    incarnation INTEGER,
    extracted   INTEGER,
    model       TEXT,
    created_at  TEXT,
    note        TEXT
);

CREATE TABLE IF NOT EXISTS dock_node_attribute (node TEXT, name TEXT, position INTEGER, value, PRIMARY KEY (node, name, position));
