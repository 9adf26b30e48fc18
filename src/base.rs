//! Layer 0: what every other part stands on. Imports nothing of ours.

pub mod disk;
pub mod ids;
pub mod limits;
pub mod space;
pub mod step;
