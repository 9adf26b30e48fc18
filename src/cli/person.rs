//! Who decides, and why: both are kept with every decision of a person.

use anyhow::bail;

/// Names of the environment under which the caller's name stands; behind `sudo` it is the one who called it.
const NAMES: [&str; 3] = ["SUDO_USER", "USER", "LOGNAME"];

/// Arguments of every command by which a person decides.
#[derive(Debug, clap::Args)]
pub(crate) struct PersonArgs {
    /// Why; it is kept, and told to the node
    #[arg(long, value_name = "TEXT", value_parser = text)]
    pub(crate) reason: String,
    /// Who decides [default: the user who calls]
    #[arg(long, value_name = "NAME", value_parser = text)]
    by: Option<String>,
}

impl PersonArgs {
    /// Returns who decides.
    pub(crate) fn who(&self) -> anyhow::Result<String> {
        let named =
            self.by.clone().or_else(|| NAMES.iter().filter_map(|name| std::env::var(name).ok()).find(|name| !name.trim().is_empty()));
        match named.or_else(account) {
            Some(name) => Ok(name),
            None => bail!("it is not known who calls: name yourself with --by NAME"),
        }
    }
}

/// Returns the account that runs the program: under cron and in containers the environment names nobody.
#[cfg(unix)]
fn account() -> Option<String> {
    Some(format!("uid {}", rustix::process::getuid().as_raw()))
}

#[cfg(not(unix))]
fn account() -> Option<String> {
    None
}

/// A text that says something.
fn text(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it must not be empty".to_owned()),
        text if text.chars().count() > 1_000 => Err("at most 1,000 characters".to_owned()),
        text => Ok(text.to_owned()),
    }
}
