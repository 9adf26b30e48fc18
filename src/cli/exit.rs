//! How a command ends: four exit codes that cron can act on, and errors as `error:` and `hint:` lines on stderr.

use crate::cli::hint;
use crate::cli::output::StdoutClosed;
use anstyle::{AnsiColor, Style};
use std::io::Write;
use std::process::ExitCode;

/// The exit codes, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Done, but something waits for a person.
    NeedsPerson,
    /// Failed: nothing will change until somebody does something.
    Failed,
    /// Busy or offline: try again later.
    TryAgain,
}

impl Exit {
    /// Returns the number that the process ends with.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::NeedsPerson => 1,
            Exit::Failed => 2,
            Exit::TryAgain => 3,
        }
    }
}

/// What a command returns.
pub type Outcome = anyhow::Result<Exit>;

/// Ends the program: prints the error with its hint, if there is one, and returns the exit code.
///
/// A reader of our output that went away (`dockmaster status | head -1`) is no error.
pub fn finish(outcome: Outcome) -> ExitCode {
    let exit = match outcome {
        Ok(exit) => exit,
        Err(error) if error.downcast_ref::<StdoutClosed>().is_some() => Exit::Done,
        Err(error) => {
            report(&error);
            hint::exit_of(&error)
        }
    };
    ExitCode::from(exit.code())
}

/// Prints `error: ..` and, where somebody can do something, `hint: ..`.
pub fn report(error: &anyhow::Error) {
    let (red, green) = (bold(AnsiColor::Red), bold(AnsiColor::Green));
    let mut stderr = anstream::stderr().lock();
    // Nothing is left to be told to when stderr itself is closed.
    let _ = writeln!(stderr, "{red}error:{red:#} {}", sentence(error));
    if let Some(hint) = hint::of(error) {
        let _ = writeln!(stderr, "{green}hint:{green:#} {hint}");
    }
}

fn bold(color: AnsiColor) -> Style {
    Style::new().bold().fg_color(Some(color.into()))
}

/// Joins the chain of causes; a cause that the message above it already quotes is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Arms the crash point that `DOCKMASTER_CRASH` names, and plants the defect of `DOCKMASTER_DEFECT`; tests of debug builds set them.
#[cfg(debug_assertions)]
pub(super) fn arm_for_tests() {
    if let Ok(text) = std::env::var("DOCKMASTER_CRASH") {
        crate::base::crash::arm(&text);
    }
    if let Ok(name) = std::env::var("DOCKMASTER_DEFECT") {
        crate::base::defect::plant(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn causes_are_joined_and_not_repeated() {
        let error = Err::<(), _>(anyhow::anyhow!("disk full")).context("write 00000042.dx").unwrap_err();
        assert_eq!(sentence(&error), "write 00000042.dx: disk full");
        let quoting = Err::<(), _>(anyhow::anyhow!("disk full")).context("write 00000042.dx: disk full").unwrap_err();
        assert_eq!(sentence(&quoting), "write 00000042.dx: disk full");
    }

    #[test]
    fn codes_are_the_documented_ones() {
        assert_eq!([Exit::Done, Exit::NeedsPerson, Exit::Failed, Exit::TryAgain].map(Exit::code), [0, 1, 2, 3]);
    }
}
