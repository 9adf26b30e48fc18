//! The one integration-test binary: one link, not one per file.

// A test says what it wants by failing; helpers outside of `#[test]` functions do too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr, unreachable_pub)]

mod apply;
mod bench;
mod bounds;
mod capture;
mod cli;
mod compare;
mod confirms;
mod crash_points;
mod crm;
mod cut;
mod definition;
mod definition_messages;
mod definition_resolved;
mod deploy;
mod direct;
mod django;
mod docking;
mod dx;
mod dx_upload;
mod end_to_end;
mod examples;
mod explain;
mod extract;
mod folding;
mod harness;
mod kills;
mod large;
mod memory;
mod messages;
mod node_kit;
mod northwind;
mod oracle;
mod oracle_random;
mod oracle_router;
mod oracle_schemas;
mod pipeline;
mod rebuild;
mod reconcile;
mod recover;
mod redefine;
mod rights;
mod route;
mod router;
mod scenarios;
mod scope;
mod scope_cost;
mod scope_large;
mod seeing;
mod session;
mod ten_steps;
mod tidy;
mod verify;
mod wrong_input;
