//! Layer 2, pure: the definition language, its check, the scope graph and the route decision.

pub mod advice;
pub mod check;
pub mod closure;
pub mod definition;
pub mod graph;
pub mod language;
pub mod problem;
pub mod reader;
pub mod resolve;
pub mod route;
pub mod starter;
pub mod tables;
pub mod settings;
