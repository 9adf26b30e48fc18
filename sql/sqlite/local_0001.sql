-- The tables of Dockmaster in a local database. Schema version 1.
-- Written once into an extract; the watermark in `dock_state` is committed together with the rows that it covers.

CREATE TABLE dock_state (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    server_id    TEXT    NOT NULL,             -- hex; identity of the server database
    server_name  TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,             -- history of the server database
    node         TEXT    NOT NULL,
    incarnation  INTEGER NOT NULL,             -- which extract of the node this is
    install_id   TEXT,                         -- hex; drawn when the client takes the database over
    applied_file INTEGER NOT NULL,             -- last file that is applied to its end
    applied_unit INTEGER NOT NULL,             -- last unit that is applied
    chain_hash   TEXT    NOT NULL,             -- hex; content hash of applied_file, zero before the first
    revision     INTEGER NOT NULL,             -- definition in force at applied_unit
    applied_at   TEXT,                         -- for people only
    next_unit    INTEGER NOT NULL DEFAULT 1,   -- number of the next unit of local changes
    stopped      TEXT,                         -- why nothing is applied any more; NULL while all is well
    token        TEXT                          -- hex; what the server is shown next: it tells a copy that was left behind (NULL = none yet)
) STRICT;

-- Tables that the server fills. A file that names any other table is refused.
CREATE TABLE dock_table (
    name TEXT NOT NULL PRIMARY KEY COLLATE NOCASE
) STRICT, WITHOUT ROWID;

-- Content hashes of the last files that were applied: tells a repeated file from another one under its number.
CREATE TABLE dock_file (
    file_no      INTEGER PRIMARY KEY,
    content_hash TEXT NOT NULL
) STRICT;

-- What was found at marks in the stream, where this database compared itself with the server.
CREATE TABLE dock_verify (
    id         INTEGER NOT NULL,               -- number of the question
    place      INTEGER NOT NULL,               -- which of its tables this is
    unit       INTEGER NOT NULL,               -- the unit at whose end both were compared
    table_name TEXT    NOT NULL,
    is_equal   INTEGER NOT NULL,
    outcome    TEXT    NOT NULL,               -- JSON
    told       INTEGER NOT NULL DEFAULT 0,     -- whether the server knows
    PRIMARY KEY (id, place)
) STRICT;

-- Every local change, written by triggers in the same commit. Widened to the widest table; rows go when they are cut into units.
CREATE TABLE dock_txn_log (
    id  INTEGER PRIMARY KEY AUTOINCREMENT,
    at  REAL DEFAULT (julianday('now')),
    tbl INTEGER,
    op  TEXT,
    c1
);

-- How each table is captured: its number is `tbl` in the log and the end of the name of its base table, dock_base_N.
CREATE TABLE dock_capture (
    id         INTEGER PRIMARY KEY,
    table_name TEXT NOT NULL,
    columns    TEXT NOT NULL,                  -- JSON list, in the order of c1, c2, ..
    row_key    TEXT NOT NULL,                  -- JSON list of places in columns
    shape      TEXT NOT NULL,                  -- JSON; what the table looked like, as far as capture depends on it
    triggers   TEXT NOT NULL                   -- JSON; our triggers by name, as stored
) STRICT;

-- An application that wants a unit of its own writes a row before and after: INSERT INTO dock_txn_mark(label) VALUES ('order 17').
CREATE TABLE dock_txn_mark (label TEXT);

-- Units of local changes that are not finished, in order. state: pending | sent | held.
CREATE TABLE dock_unit (
    unit      INTEGER PRIMARY KEY,
    state     TEXT    NOT NULL,
    applied   INTEGER NOT NULL,                -- applied_unit when it was cut
    revision  INTEGER NOT NULL,
    cut_at    INTEGER NOT NULL,                -- microseconds since 1970, for people
    label     TEXT,
    hidden    TEXT    NOT NULL,                -- JSON list of units that were suspended when it was cut
    file_no   INTEGER,                         -- upload file that it is in; NULL = in none yet
    offered   INTEGER NOT NULL DEFAULT 0,      -- whether it was ever in a file: then the server may know it, and its number stays
    suspended TEXT,                            -- why it is not shown in the tables; NULL = shown
    reason    TEXT,                            -- why the server holds it
    changes   INTEGER NOT NULL
) STRICT;
CREATE INDEX dock_unit_suspended ON dock_unit (unit) WHERE suspended IS NOT NULL;

-- Their changes. Keys as model::keycode, folded as the primary key compares them: `row_key` before the unit (of an inserted row its own),
-- `new_key` after it if the unit changes the key. `body` as in the upload file, with the keys as they are spelled.
CREATE TABLE dock_change (
    unit       INTEGER NOT NULL,
    place      INTEGER NOT NULL,
    table_name TEXT    NOT NULL,
    row_key    BLOB    NOT NULL,
    new_key    BLOB,
    key_text   TEXT    NOT NULL,
    op         TEXT    NOT NULL,               -- insert | update | delete
    columns    TEXT    NOT NULL,               -- JSON list: the columns that `body` refers to
    key_columns TEXT   NOT NULL,               -- JSON list: places of the key in `columns`, in key order
    body       BLOB    NOT NULL,
    PRIMARY KEY (unit, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX dock_change_row ON dock_change (table_name, row_key);
CREATE INDEX dock_change_new ON dock_change (table_name, new_key) WHERE new_key IS NOT NULL;

-- Upload files that were made for this incarnation. A row without units says what the chain goes on behind.
CREATE TABLE dock_upload (
    file_no      INTEGER PRIMARY KEY,
    first_unit   INTEGER NOT NULL,
    last_unit    INTEGER NOT NULL,
    applied      INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    content_hash TEXT    NOT NULL,
    bytes        INTEGER NOT NULL,
    byte_hash    TEXT    NOT NULL,
    stored       INTEGER NOT NULL DEFAULT 0    -- whether the server has it durable
) STRICT;

-- How changes are brought together, per table: JSON of what the definition says. Comes with the extract and in the stream.
CREATE TABLE dock_merge_rules (
    table_name TEXT NOT NULL PRIMARY KEY COLLATE NOCASE,
    direction  TEXT NOT NULL,                  -- two-way | download | upload
    rules      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Units of this node, of whatever local database, that were finished when the extract was made: what is carried over from an older
-- local database and stands here is dropped. outcome: merged | ignored | returned.
CREATE TABLE dock_finished (
    install_id TEXT    NOT NULL,
    unit       INTEGER NOT NULL,
    outcome    TEXT    NOT NULL,
    PRIMARY KEY (install_id, unit)
) STRICT, WITHOUT ROWID;

-- Keys that the server replaced. Put into units that were cut before `seen` was applied, whenever they are read; goes with the last of them.
CREATE TABLE dock_key_map (
    unit       INTEGER NOT NULL,               -- the unit that gave the key
    seen       INTEGER NOT NULL,               -- the server's unit that told of the new one
    table_name TEXT    NOT NULL,
    old_key    BLOB    NOT NULL,
    new_key    BLOB    NOT NULL
) STRICT;

-- What was lost, refused, ignored or returned: values kept for people and applications. Values are JSON.
CREATE TABLE dock_conflict (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    unit        INTEGER NOT NULL,
    server_id   INTEGER,                       -- number of the conflict on the server
    table_name  TEXT    NOT NULL,
    row_key     BLOB    NOT NULL,
    key_text    TEXT    NOT NULL,
    column_name TEXT,                          -- NULL = the whole row
    base        TEXT,
    server      TEXT,
    client      TEXT,
    winner      TEXT    NOT NULL,
    rule        TEXT    NOT NULL,
    reason      TEXT,
    at          INTEGER NOT NULL,
    state       TEXT    NOT NULL DEFAULT 'new' -- new | seen | resubmitted
) STRICT;

CREATE VIEW dock_pending AS
    SELECT u.unit, CASE WHEN u.suspended IS NULL THEN u.state ELSE 'suspended' END AS state, u.label, u.suspended, u.reason,
           c.table_name, c.key_text AS row_key, c.op
    FROM dock_unit AS u JOIN dock_change AS c ON c.unit = u.unit;

CREATE VIEW dock_conflicts AS
    SELECT id, unit, table_name, key_text AS row_key, column_name, base, server, client, winner, rule, reason, at, state FROM dock_conflict;

-- What applications may look at.
CREATE VIEW dock_status AS
    SELECT server_name, node, incarnation, applied_file, applied_unit, revision, applied_at,
           CASE WHEN stopped IS NULL THEN 'ok' ELSE 'stopped' END AS state, stopped AS reason,
           (SELECT count(*) FROM dock_unit) AS pending,
           (SELECT count(*) FROM dock_unit WHERE suspended IS NOT NULL) AS suspended,
           (SELECT count(*) FROM dock_unit WHERE state = 'held') AS held,
           (SELECT count(*) FROM dock_conflict WHERE state = 'new') AS conflicts
    FROM dock_state;
