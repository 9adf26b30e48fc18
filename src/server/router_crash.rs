//! Crash sweep of the Router.
