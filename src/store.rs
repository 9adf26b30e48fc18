//! Layer 3: SQL on the server database and on local databases.

pub mod capture;
pub mod control;
pub mod counts;
pub mod coverage;
pub mod ddl;
mod ddl_tokens;
pub mod deployed;
pub mod heal;
pub mod indexsql;
pub mod install;
pub mod local;
pub mod local_apply;
pub mod local_build;
pub mod local_schema;
pub mod local_table;
pub mod local_verify;
pub mod log;
pub mod logged;
pub mod nodes;
pub mod predicate;
pub mod probe;
pub mod schema;
pub mod snapshot;
pub mod sqlite;
pub mod swap;
pub mod tail;
pub mod txnproc;
