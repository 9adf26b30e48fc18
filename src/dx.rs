//! Layer 2, pure: the `.dx` file format. Works on bytes and on `Read`, `Seek`, `Write` that it is given; opens nothing.
//!
//! `docs/dx-format.md` is the one description; `format` holds every constant of it.

pub mod codec;
pub mod error;
pub mod format;
pub mod frame;
pub mod header;
pub mod reader;
pub mod record;
pub mod show;
pub mod writer;
