//! Being written.

/// Being written.
#[derive(Debug, Clone)]
pub struct Stopped;
