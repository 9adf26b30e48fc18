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
    stopped      TEXT                          -- why nothing is applied any more; NULL while all is well
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

-- What applications may look at.
CREATE VIEW dock_status AS
    SELECT server_name, node, incarnation, applied_file, applied_unit, revision, applied_at,
           CASE WHEN stopped IS NULL THEN 'ok' ELSE 'stopped' END AS state, stopped AS reason
    FROM dock_state;
