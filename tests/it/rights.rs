//! Rights of uploads: what a node may do to the server database with a unit of its changes.

mod sight;
