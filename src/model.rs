//! Layer 1: plain data that the stages hand to each other. No SQL, no file, no clock.

pub mod digest;
pub mod dock;
pub mod event;
pub mod keycode;
pub mod merge_rules;
pub mod node;
pub mod operation;
pub mod schema;
pub mod toc;
pub mod upload;
pub mod value;
pub mod value_json;
