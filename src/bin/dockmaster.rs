//! The server-side router service and its administration.

fn main() {}
