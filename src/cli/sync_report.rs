//! What a sync says of the changes that it sent.

use crate::cli::exit::Exit;
use crate::cli::output::{bytes, count, some};
use crate::client::applier::{Applier, Fates};
use crate::client::local_applier::LocalApplier;
use crate::client::report::{ExchangeError, SentReport};
use serde_json::json;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What was sent, and what is known of it by now.
pub(crate) struct Sent<'a> {
    report: &'a SentReport,
    fates: Fates,
    /// How the commands name the local database.
    database: String,
}

impl<'a> Sent<'a> {
    /// Looks what became of what was sent.
    pub(crate) fn of(report: &'a SentReport, applier: &Mutex<LocalApplier>, database: &Path) -> Result<Sent<'a>, ExchangeError> {
        let uploads = applier.lock().unwrap_or_else(PoisonError::into_inner).uploads();
        let fates = match uploads {
            Some(uploads) if !report.ranges.is_empty() => {
                uploads.lock().unwrap_or_else(PoisonError::into_inner).fates(&report.ranges).map_err(ExchangeError::Local)?
            }
            _ => Fates::default(),
        };
        Ok(Sent { report, fates, database: database.display().to_string() })
    }

    fn merged(&self) -> u64 {
        self.report.units.saturating_sub(self.fates.refused + self.fates.waiting)
    }

    /// Returns the same for programs.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "files": self.report.files, "bytes": self.report.bytes, "units": self.report.units, "merged": self.merged(),
            "refused": self.fates.refused, "waiting": self.fates.waiting, "conflicts": self.fates.conflicts, "in_time": self.report.merged,
            "not_taken": self.report.refused.as_ref().map(|refused| json!({
                "file": refused.file.0, "code": refused.code.to_string(), "text": refused.text,
            })),
        })
    }

    /// Returns the sentence for the summary; nothing if nothing was sent.
    pub(crate) fn text(&self) -> String {
        if self.report.units == 0 { String::new() } else { self.said() }
    }

    /// Returns the sentence, whatever was sent.
    pub(crate) fn said(&self) -> String {
        let mut parts = Vec::new();
        for (number, what) in [(self.merged(), "merged"), (self.fates.refused, "refused"), (self.fates.waiting, "not merged yet")] {
            if number > 0 {
                parts.push(format!("{} {what}", count(i64::try_from(number).unwrap_or(i64::MAX))));
            }
        }
        let fates = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
        format!("Sent {}, {}{fates}. ", some(self.report.units, "transaction", "transactions"), bytes(self.report.bytes))
    }

    /// Returns what else a person should know.
    pub(crate) fn notes(&self, wait: Option<u32>) -> Vec<String> {
        let mut notes = self.report.remarks.clone();
        if let (Some(false), Some(seconds)) = (self.report.merged, wait) {
            notes
                .push(format!("Not everything was merged within {seconds} s: the server goes on, and its answer comes with a later sync."));
        }
        if let Some(refused) = &self.report.refused {
            notes.push(format!("The server did not take {} ({}): {}", refused.file.file_name(), refused.code, refused.text));
        }
        if self.fates.conflicts > 0 {
            let conflicts = some(self.fates.conflicts, "conflict", "conflicts");
            notes.push(format!("{conflicts} with changes of others: remote-sync conflicts list {}", self.database));
        }
        if self.fates.refused > 0 {
            notes.push(format!("What was refused waits for a person on the server: remote-sync pending {}", self.database));
        }
        if self.report.is_unknown_to_server {
            notes.push("The server takes no changes of nodes: its program is older. What was changed here waits.".to_owned());
        }
        notes
    }

    /// Returns the exit code.
    pub(crate) fn exit(&self) -> Exit {
        match &self.report.refused {
            Some(refused) if refused.code.is_passing() => Exit::TryAgain,
            Some(_) => Exit::NeedsPerson,
            None if self.fates.refused + self.fates.conflicts > 0 => Exit::NeedsPerson,
            None => Exit::Done,
        }
    }
}
