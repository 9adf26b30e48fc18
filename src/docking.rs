//! Layer 3: the docking root. Folders, numbered queues, the lock, the ledger of the Transaction Router, the sessions.
//!
//! `docs/docking-format.md` shows the tree, the order of writes and every state that a crash can leave.

pub mod backlog;
pub mod error;
pub mod keys;
pub mod ledger;
pub mod purge_rows;
pub mod queue;
pub mod reports;
pub mod room;
pub mod root;
pub mod sessions;
pub mod tokens;
pub mod txnproc;
pub mod uploads;
