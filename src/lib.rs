//! Dockmaster keeps many occasionally connected SQLite databases in step with one server database, by routing
//! transactions as files.
//!
//! ```text
//!  server database ──trigger──▶ dock_txn_log ──Transaction Processor──▶ docking/txnproc/NNNNNNNN.dx
//!                                               │ keeps cds.db: consolidated data store + scope index
//!                                               ▼
//!                                      Transaction Router ──▶ docking/<NODE>/outbox/NNNNNNNN.dx
//!                                                                    │
//!                                                          Synchronization Manager ── session ──▶ <client>/inbox/*.dx
//!                                                                                                       │ apply
//!                                                                                                local database
//! ```
//!
//! Imports go down this table only; `tests/it/tidy.rs` fails the build otherwise.
//!
//! | layer | folder | may use | what it is |
//! |---|---|---|---|
//! | 0 | `base` | - | ids, clock, disk (the only writer of files), limits, step |
//! | 1 | `model` | base | plain data: value, row, schema, dock objects, events, operations, nodes |
//! | 1 | `trust` | base | keys, certificates, enrolment tokens; what TLS demands |
//! | 2 | `dx`, `rules`, `session` | base, model, trust | pure: codec; definition language and route decisions; protocol state |
//! | 3 | `store` | layers 0-2 | SQL on the server database and local databases; values and names in SQL; row predicates |
//! | 3 | `cds`, `docking` | layers 0-2, store | consolidated data store and scope index; folders, queues, ledger, sessions |
//! | 3 | `transport` | layers 0-2, docking | sockets |
//! | 4 | `server`, `client` | layers 0-3 | one file per component |
//! | 5 | `cli` | all | arguments, configuration, output, exit codes |

pub mod base;
pub mod cds;
pub mod cli;
pub mod client;
pub mod docking;
pub mod dx;
pub mod model;
pub mod rules;
pub mod server;
pub mod session;
pub mod store;
pub mod transport;
pub mod trust;
