//! Layer 0: what every other part stands on. Imports nothing of ours.

pub mod clock;
pub mod crash;
pub mod defect;
pub mod disk;
pub mod folder;
pub mod group;
pub mod handles;
pub mod ids;
pub mod limits;
pub mod lock;
pub mod part;
pub mod quarantine;
pub mod space;
pub mod step;
pub mod workers;
