//! Scenarios and counterexamples, each as a small case from outside.

mod clocks;
mod injected;
mod life;
mod routing;
mod troubles;
