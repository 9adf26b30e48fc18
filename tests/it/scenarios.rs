//! Scenarios and counterexamples, each as a small case from outside.

pub(crate) mod clocks;
mod injected;
mod life;
mod routing;
mod troubles;
