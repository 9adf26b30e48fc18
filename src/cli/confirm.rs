//! The one question that commands ask before they change something that cannot simply be undone.

use anyhow::Context as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

/// A question that nobody can answer.
#[derive(Debug, thiserror::Error)]
#[error("this has to be confirmed, and stdin is no terminal")]
pub struct NobodyToAsk;

/// Asks on stderr; returns whether the answer was yes. `yes` answers beforehand.
///
/// # Errors
/// Nobody is there to answer.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(NobodyToAsk.into());
    }
    let mut stderr = anstream::stderr();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).context("ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
