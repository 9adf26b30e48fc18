//! The tokens that local databases were given, in `sessions.db` (R34).
//!
//! With each session a local database gets another token, in two steps: given, and known to be held durable. Until then both the former one and
//! the new one are right. One that shows an older one is a copy: restored, or a second one that goes on beside the first. Which of the two, the
//! first such call does not tell; it is let in, and a person is told. As long as nobody has cleared that, another such call can only mean
//! that both go on, and is refused. Tokens of one database are
//! counted, so one that is newer than what is kept here says that this file was restored, and is right. Losing the file loses this memory: every
//! token is right once then.

use crate::base::defect::{self, Defect};
use crate::base::ids::{InstallId, NodeName, SyncToken};
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::session::admission::Shown;
use rusqlite::{OptionalExtension, params};

/// Table of this file.
pub(super) const LAYOUT: &str = "CREATE TABLE token(
    node TEXT NOT NULL, install_id BLOB NOT NULL, held BLOB, given BLOB, is_suspect INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY(node, install_id)) WITHOUT ROWID;";

impl SessionsDb {
    /// Judges the token that a local database shows, and notes which one it is given next unless it is refused. `random` makes that one differ
    /// from any other of its number.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn judge_token(
        &self,
        (node, install): (&NodeName, InstallId),
        shown: Option<SyncToken>,
        random: [u8; 8],
    ) -> Result<(Shown, SyncToken), SessionsError> {
        let bytes = |token: Option<SyncToken>| token.map(|token| token.0.to_vec());
        let count = |token: &Option<[u8; 16]>| token.map_or(0, |token| token.first_chunk().map_or(0, |count| u64::from_be_bytes(*count)));
        let judge = || -> rusqlite::Result<(Shown, SyncToken)> {
            type Row = (Option<[u8; 16]>, Option<[u8; 16]>, bool);
            let known: Option<Row> = self
                .connection()
                .prepare_cached("SELECT held, given, is_suspect FROM token WHERE node = ? AND install_id = ?")?
                .query_row(params![node.as_str(), &install.0[..]], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let shown_bytes = shown.map(|token| token.0);
            let last = known.as_ref().map_or(0, |(held, given, _)| count(held).max(count(given)));
            let number = last.max(count(&shown_bytes)).saturating_add(1);
            let mut next = SyncToken::default();
            next.0[..8].copy_from_slice(&number.to_be_bytes());
            next.0[8..].copy_from_slice(&random);
            let verdict = match known {
                None => Shown::Right,
                Some(_) if defect::is_planted(Defect::FormerTokens) => Shown::Right,
                Some((held, given, _)) if shown_bytes == held || (given.is_some() && shown_bytes == given) => Shown::Right,
                Some(_) if count(&shown_bytes) > last => Shown::Right,
                Some((.., true)) => return Ok((Shown::Copied, next)),
                Some((.., false)) => Shown::Former,
            };
            let sql = "INSERT INTO token(install_id, node, held, given, is_suspect) VALUES (?1, ?2, ?3, ?4, ?5)
                       ON CONFLICT(node, install_id) DO UPDATE SET held = ?3, given = ?4, is_suspect = max(is_suspect, ?5)";
            let is_suspect = verdict == Shown::Former;
            self.connection().prepare_cached(sql)?.execute(params![
                &install.0[..],
                node.as_str(),
                bytes(shown),
                &next.0[..],
                is_suspect
            ])?;
            Ok((verdict, next))
        };
        judge().map_err(|source| self.error("judge a token by", source))
    }

    /// Notes that a local database holds the token that it was given: the former one is wrong from here on.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn token_kept(&self, node: &NodeName, install: InstallId) -> Result<(), SessionsError> {
        let sql = "UPDATE token SET held = given, given = NULL WHERE node = ? AND install_id = ? AND given IS NOT NULL";
        let kept =
            self.connection().prepare_cached(sql).and_then(|mut statement| statement.execute(params![node.as_str(), &install.0[..]]));
        kept.map(drop).map_err(|source| self.error("write token to", source))
    }

    /// Takes back what was suspected of the local databases of a node.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn clear_suspicion(&self, node: &NodeName) -> Result<(), SessionsError> {
        let cleared = self.connection().execute("UPDATE token SET is_suspect = 0 WHERE node = ?", [node.as_str()]);
        cleared.map(drop).map_err(|source| self.error("write token to", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Server {
        _home: tempfile::TempDir,
        sessions: SessionsDb,
        drawn: std::cell::Cell<u8>,
    }

    impl Server {
        fn new() -> Server {
            let home = tempfile::tempdir().unwrap();
            let sessions = SessionsDb::open(&home.path().join("sessions.db")).unwrap();
            Server { _home: home, sessions, drawn: std::cell::Cell::new(0) }
        }

        /// A session of a database; `reaches` says how far it comes: given, kept by the node, known by the server.
        fn session(&self, held: &mut Option<SyncToken>, reaches: u8) -> Shown {
            self.drawn.set(self.drawn.get() + 1);
            let random = [self.drawn.get(); 8];
            let (verdict, next) = self.sessions.judge_token((&"ANNA".parse().unwrap(), InstallId([7; 16])), *held, random).unwrap();
            if verdict != Shown::Copied && reaches > 0 {
                *held = Some(next);
            }
            if verdict != Shown::Copied && reaches > 1 {
                self.sessions.token_kept(&"ANNA".parse().unwrap(), InstallId([7; 16])).unwrap();
            }
            verdict
        }
    }

    #[test]
    fn r34_a_session_that_is_cut_at_any_step_makes_nobody_suspect() {
        let server = Server::new();
        let mut anna = None;
        for reaches in [0, 2, 0, 0, 1, 1, 0, 1, 2, 2, 1, 0, 2] {
            assert_eq!(server.session(&mut anna, reaches), Shown::Right, "{reaches}");
        }
    }

    #[test]
    fn r34_of_two_copies_the_first_that_is_behind_is_told_and_the_next_is_refused_in_both_orders() {
        for first_again in [false, true] {
            let server = Server::new();
            let mut anna = None;
            server.session(&mut anna, 2);
            let mut copy = anna;
            assert_eq!(server.session(&mut anna, 2), Shown::Right);
            if first_again {
                assert_eq!(server.session(&mut anna, 2), Shown::Right);
            }
            assert_eq!(server.session(&mut copy, 2), Shown::Former);
            assert_eq!(server.session(&mut copy, 2), Shown::Right, "it may be a restored one");
            assert_eq!(server.session(&mut anna, 2), Shown::Copied);
            assert_eq!(server.session(&mut anna, 2), Shown::Copied, "until somebody has looked");
            server.sessions.clear_suspicion(&"ANNA".parse().unwrap()).unwrap();
            assert_eq!(server.session(&mut anna, 2), Shown::Former);
            assert_eq!(server.session(&mut copy, 2), Shown::Copied);
        }
    }

    #[test]
    fn r34_a_memory_that_was_restored_makes_nobody_suspect() {
        let server = Server::new();
        let mut anna = None;
        server.session(&mut anna, 2);
        let row = |sql: &str| server.sessions.connection().execute_batch(sql).unwrap();
        row("CREATE TEMP TABLE copy AS SELECT * FROM token");
        let mut left_behind = anna;
        server.session(&mut anna, 2);
        server.session(&mut anna, 2);
        row("DELETE FROM token; INSERT INTO token SELECT * FROM copy");
        assert_eq!(server.session(&mut anna, 2), Shown::Right);
        assert_eq!(server.session(&mut left_behind, 2), Shown::Former);
    }

    #[test]
    fn r34_a_copy_that_calls_while_the_last_session_is_unconfirmed_is_found_when_the_other_calls() {
        let server = Server::new();
        let mut anna = None;
        server.session(&mut anna, 2);
        let mut copy = anna;
        server.session(&mut anna, 1);
        assert_eq!(server.session(&mut copy, 2), Shown::Right, "nobody can know");
        assert_eq!(server.session(&mut anna, 2), Shown::Former);
        assert_eq!(server.session(&mut copy, 2), Shown::Copied);
    }
}
