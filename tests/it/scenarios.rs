//! Scenarios and counterexamples, each as a small case from outside.

mod life;
mod routing;
mod troubles;
