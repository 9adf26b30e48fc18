//! By what this side proves itself to sshd, and knows it, as settings say it.

use std::path::PathBuf;

/// By what this side proves itself to sshd, and knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SshSettings {
    /// The file with the private key; `None` = the agent, or the password.
    pub key: Option<PathBuf>,
    /// The list of known hosts; `None` = that of the user, which the command line knows.
    pub known_hosts: Option<PathBuf>,
    /// A file with the password of the account, or of the key.
    pub password_file: Option<PathBuf>,
}

#[cfg(unix)]
impl SshSettings {
    /// Returns what the SSH library needs.
    ///
    /// # Errors
    /// No list of hosts is named.
    pub fn to_keys(&self) -> Result<crate::transport::ssh::SshKeys, String> {
        let known_hosts = self.known_hosts.clone().ok_or("no list of known hosts is named")?;
        Ok(crate::transport::ssh::SshKeys { key: self.key.clone(), known_hosts, password_file: self.password_file.clone() })
    }
}
