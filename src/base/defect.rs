//! Errors that are planted on purpose, so that a harness proves that it sees them.
//!
//! A debug build of either program that finds `DOCKMASTER_DEFECT=name` in its environment behaves wrongly in that one way, and says so.
//! `tests/it/defects.rs` goes through [`Defect::ALL`] and demands that a harness fails for each: a harness that cannot fail proves nothing.
//! Release builds have none of this.

#[cfg(debug_assertions)]
use std::sync::OnceLock;

macro_rules! defects {
    ($($variant:ident = $name:literal: $meaning:literal,)+) => {
        /// A way to be wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Defect {
            $(#[doc = $meaning] $variant,)+
        }

        impl Defect {
            /// Every one there is.
            pub const ALL: &'static [Defect] = &[$(Defect::$variant,)+];

            /// Returns the name that `DOCKMASTER_DEFECT` knows it by.
            pub fn name(self) -> &'static str {
                match self {
                    $(Defect::$variant => $name,)+
                }
            }

            /// Returns what it does, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Defect::$variant => $meaning,)+
                }
            }
        }
    };
}

defects! {
    NoFileFlush = "no-file-flush": "Files are renamed and acknowledged without being flushed.",
    NoFolderFlush = "no-folder-flush": "The entries of folders are not flushed.",
    NoDatabaseFlush = "no-database-flush": "Our databases commit with `synchronous = OFF`.",
    NoTailFlush = "no-tail-flush": "The tail is committed without being flushed, so commits of programs may vanish behind what was published of them (I7).",
    SkippedWatermark = "skipped-watermark": "Units are applied and the watermark is not written with them.",
    EarlyAcknowledgement = "early-acknowledgement": "The server says that it has stored a file before the file has its name.",
    EarlyPurge = "early-purge": "The purge deletes the first file that is not applied.",
    IgnoredChain = "ignored-chain": "A file is applied whatever it follows.",
    StaleNodeKeys = "stale-node-keys": "A node keeps the keys that it had, whatever becomes of the rows they are derived from.",
    FormerTokens = "former-tokens": "Every token that a local database ever had is right.",
    UnlockedRoot = "unlocked-root": "Locks of folders are not waited for, so two services run.",
    BlindRights = "blind-rights": "What a row became by a unit is not held against the rights of its node.",
}

/// The name of the defect of this process.
#[cfg(debug_assertions)]
static PLANTED: OnceLock<String> = OnceLock::new();

/// Plants a defect into this process by its text in `DOCKMASTER_DEFECT`. The first call holds.
#[cfg(debug_assertions)]
pub fn plant(name: &str) {
    PLANTED.get_or_init(|| name.to_owned());
    tracing::error!("this process is wrong on purpose: {name}");
}

/// Returns whether this process is to be wrong in that way. Never in release builds.
#[cfg(debug_assertions)]
pub fn is_planted(defect: Defect) -> bool {
    PLANTED.get().is_some_and(|name| name == defect.name())
}

/// Returns whether this process is to be wrong in that way. Never in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn is_planted(_: Defect) -> bool {
    false
}

/// Returns the `synchronous` of a database whose commits must survive a power cut.
pub fn synchronous() -> &'static str {
    if is_planted(Defect::NoDatabaseFlush) { "OFF" } else { "FULL" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_of_defects_are_unlike_and_none_is_planted_by_itself() {
        let names: BTreeSet<&str> = Defect::ALL.iter().map(|defect| defect.name()).collect();
        assert_eq!(names.len(), Defect::ALL.len());
        assert!(Defect::ALL.iter().all(|defect| !is_planted(*defect)));
        assert_eq!(synchronous(), "FULL");
    }
}
