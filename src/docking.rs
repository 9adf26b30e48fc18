//! Layer module (being written).

pub mod sessions;
