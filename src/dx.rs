//! Layer 2, pure: the `.dx` file format. Works on bytes and on `Read`, `Seek`, `Write` that it is given; opens nothing.
//!
//! `docs/dx-format.md` is the one description; `format` holds every constant of it.

// Bytes of others pass here: no index and no cast that such bytes could make wrong.
#![warn(clippy::indexing_slicing, clippy::cast_possible_truncation)]

pub mod codec;
pub mod error;
pub mod format;
pub mod frame;
pub mod header;
pub mod reader;
pub mod record;
pub mod show;
mod show_items;
pub mod txnproc_reader;
pub mod upload;
pub mod upload_reader;
pub mod upload_writer;
pub mod writer;
