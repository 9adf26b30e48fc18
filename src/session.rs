//! Layer module (being written).
