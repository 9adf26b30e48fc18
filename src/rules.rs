//! Layer 2, pure: the definition language, its check, the scope graph and the route decision.

pub mod graph;
pub mod route;
