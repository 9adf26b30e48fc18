//! Layer 3: SQL on the server database and on local databases.

pub mod capture;
pub mod control;
pub mod coverage;
pub mod ddl;
pub mod install;
pub mod local;
pub mod log;
pub mod predicate;
pub mod schema;
pub mod sqlite;
