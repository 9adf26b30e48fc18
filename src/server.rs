//! Layer 4: the server side, one file per Siebel component.

pub mod alerting;
pub mod carrier;
mod carrier_desk;
pub mod deploy;
pub mod directory;
pub mod door;
mod enrolment;
pub mod explain;
pub mod extract;
mod finished;
pub mod identity;
mod inbox;
pub mod merger;
mod mergerinbox;
pub mod messages;
pub mod metrics;
pub mod nodes;
pub mod outbox;
pub mod pass;
pub mod preview;
pub mod purge;
pub mod rebuild;
pub mod reconcile;
pub mod recover;
mod redefine;
pub mod round;
pub mod router;
pub(crate) mod spool;
pub mod status;
pub mod supervisor;
mod synccalls;
mod syncdoor;
pub mod syncmgr;
pub mod syncsession;
mod syncupload;
pub mod trail;
pub mod txnproc;
mod txnproc_queue;
pub mod unmerged;
pub mod verify;

#[cfg(test)]
mod purge_crash;
#[cfg(test)]
mod router_crash;
