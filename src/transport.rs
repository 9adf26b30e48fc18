//! Layer 3: what carries a session, and what ends one. A `link` is any pair of byte streams; `tcp` makes one of a socket.

pub mod carrier;
pub mod letters;
pub mod link;
pub mod newcomers;
pub mod peer;
pub mod proxy;
#[cfg(unix)]
pub mod sftp;
pub mod signals;
#[cfg(unix)]
pub mod ssh;
pub mod ssh_settings;
pub mod tcp;
pub mod throttle;
pub mod tls;
