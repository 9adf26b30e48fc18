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

-- Every unit that a node ever sent, for ever: it is executed once (R16).
CREATE TABLE IF NOT EXISTS dock_unit (
    install_id   TEXT,
    unit         INTEGER,
    node         TEXT,
    incarnation  INTEGER,
    file_no      INTEGER,
    content_hash TEXT,
    applied      INTEGER,
    cut_at       INTEGER,
    label        TEXT,
    changes      INTEGER,
    status       TEXT,
    outcome      TEXT,
    reason       TEXT,
    waits_for    INTEGER,
    conflicts    INTEGER,
    attempts     INTEGER,
    stored_at    INTEGER,
    done_at      INTEGER,
    log_id       INTEGER,
    PRIMARY KEY (install_id, unit)
);
CREATE INDEX IF NOT EXISTS dock_unit_status ON dock_unit (node, status);
CREATE INDEX IF NOT EXISTS dock_unit_waiting ON dock_unit (status, node) WHERE status IN ('waiting', 'partial');

-- How far the upload stream of each node is merged: the last file all of whose units were begun.
CREATE TABLE IF NOT EXISTS dock_merge (
    node         TEXT PRIMARY KEY,
    incarnation  INTEGER,
    install_id   TEXT,
    file_no      INTEGER,
    unit         INTEGER,
    content_hash TEXT
);

-- Every conflict, with all three values as JSON.
CREATE TABLE IF NOT EXISTS dock_conflict (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    install_id  TEXT,
    unit        INTEGER,
    node        TEXT,
    table_name  TEXT,
    row_key     TEXT,
    column_name TEXT,
    base        TEXT,
    server      TEXT,
    client      TEXT,
    winner      TEXT,
    rule        TEXT,
    at          INTEGER,
    state       TEXT,
    by          TEXT,
    resolved_at INTEGER,
    reason      TEXT
);

-- Keys that nodes gave and the server replaced (R12). log_id: the confirm that tells it.
CREATE TABLE IF NOT EXISTS dock_key_map (
    install_id TEXT,
    unit       INTEGER,
    table_name TEXT,
    old_key    BLOB,
    new_key    BLOB,
    log_id     INTEGER
);
CREATE INDEX IF NOT EXISTS dock_key_map_old ON dock_key_map (install_id, table_name, old_key);

-- Who changed the status of a unit or conflict, when and why.
CREATE TABLE IF NOT EXISTS dock_message_event (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER,
    install_id  TEXT,
    unit        INTEGER,
    conflict_id INTEGER,
    from_status TEXT,
    to_status   TEXT,
    who         TEXT,
    reason      TEXT
);

CREATE TABLE IF NOT EXISTS dock_node_attribute (node TEXT, name TEXT, position INTEGER, value, PRIMARY KEY (node, name, position));

-- Which node brought a row of an upload table that the definition shows to nobody: no rule says it, and only that node may change it.
-- row_key as model::keycode.
CREATE TABLE IF NOT EXISTS dock_owner (table_name TEXT, row_key BLOB, node TEXT, PRIMARY KEY (table_name, row_key)) WITHOUT ROWID;

-- How nodes prove who they are: the key of the one that was let in, and the token that lets the next one in. Only a hash of the token is
-- kept. Nothing is routed by this, so it is not in the log.
CREATE TABLE IF NOT EXISTS dock_node_key (
    node        TEXT PRIMARY KEY,
    key         BLOB UNIQUE,
    enrolled_at INTEGER,
    token_hash  BLOB UNIQUE,
    token_until INTEGER,
    token_key   BLOB
);
