//! The one integration-test binary: one link, not one per file.

mod apply;
mod capture;
mod cli;
mod definition;
mod docking;
mod dx;
mod end_to_end;
mod extract;
mod harness;
mod node_kit;
mod northwind;
mod oracle;
mod oracle_random;
mod oracle_router;
mod oracle_schemas;
mod route;
mod router;
mod scope;
mod scope_cost;
mod session;
mod tidy;
