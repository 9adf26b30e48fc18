//! Who is who: keys, the server's certificate authority, enrolment tokens, and what TLS is told to demand (failure model 3).

pub mod authority;
pub mod identity;
pub mod keys;
pub mod letter;
pub mod tls;
pub mod token;
