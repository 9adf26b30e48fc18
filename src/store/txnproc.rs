//! The commit point between Transaction Processor and Router: a txnproc file without a row in this table of `cds.db` does not exist.
//!
//! One writes it (`cds`), the other reads it (`docking`), and both know the layout from here.

/// The table in `cds.db`. `created` is in microseconds since 1970.
pub const TXNPROC_FILE_TABLE: &str = "CREATE TABLE IF NOT EXISTS txnproc_file(file_no INTEGER PRIMARY KEY, first INTEGER NOT NULL,
    last INTEGER NOT NULL, content_hash BLOB NOT NULL, bytes INTEGER NOT NULL, created INTEGER NOT NULL)";
