//! Layer 4: the client side, one file per step.

pub mod applier;
pub mod apply;
mod apply_inbox;
pub mod carrier;
pub mod daemon;
pub mod exchange;
pub mod folder;
pub mod identity;
pub mod inbox;
pub mod init;
pub mod init_by_letters;
pub mod local_applier;
pub mod local_uploads;
pub mod outbox;
pub mod report;
pub mod send;
pub mod status;
