//! Layer 2: the protocol between a node and the Synchronization Manager, as plain data and plain decisions.
//!
//! No socket, clock, disk or SQL in here: bytes and facts come in, messages and actions go out. So the same machines run over
//! TCP, TLS, the standard streams of ssh, or a test that hands messages over in any order. The wire is described in
//! `docs/session-protocol.md`.

// Bytes of others pass here: no index and no cast that such bytes could make wrong.
#![warn(clippy::indexing_slicing, clippy::cast_possible_truncation)]

pub mod admission;
pub mod client;
pub mod client_event;
pub mod codec;
pub mod enrol;
pub mod letter;
pub mod message;
pub mod plan;
pub mod server;
pub mod server_event;
pub mod upload;
pub mod upload_client;
pub mod upload_server;
