//! Layer 2, pure: the definition language, its check, the scope graph and the route decision.

mod advice;
pub mod check;
mod closure;
pub mod definition;
pub mod dependents;
mod draft;
pub mod frozen;
pub mod graph;
pub mod language;
mod lexer;
pub mod merge;
mod nodes;
mod objects;
pub mod problem;
pub mod reader;
pub mod retention;
pub mod route;
pub mod settings;
mod sqltext;
pub mod starter;
pub mod tables;
mod visibility;
pub(crate) mod window;
