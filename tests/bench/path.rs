//! P1, P2, P3: the client. P5, P6, P7: the whole path.

use super::meter::{Better, Line, Sides, StageLine, cpu, median, micros_each};
use super::world::{EVERYONE, OWN, PER_TXN, Spent, World, Write, checkpoint, contact, count, plain, write};
use super::{Options, Report};
use dockmaster::base::limits::APPLY_WAL_PAGES;
use rusqlite::Connection;
use std::path::Path;

/// Rows of one commit of the raw client, and of one unit where the client's commits shall be as long.
const PER_COMMIT: usize = 1_000;
/// SQLite's own setting of `wal_autocheckpoint`.
const WAL_PAGES_DEFAULT: i64 = 1_000;

fn inserts(range: std::ops::Range<usize>, owner: impl Fn(usize) -> i64) -> Vec<Write> {
    range.map(|number| Write::Insert(contact(number, owner(number), 0))).collect()
}

/// Returns `count` different numbers below `below`, in no order.
fn some_of(below: usize, count: usize, seed: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..below).collect();
    fastrand::Rng::with_seed(seed as u64).shuffle(&mut numbers);
    numbers.truncate(count);
    numbers
}

fn updates(below: usize, count: usize, version: usize) -> Vec<Write> {
    some_of(below, count, version).into_iter().map(|number| Write::Update(contact(number, 1, version))).collect()
}

fn raw(folder: &Path, name: &str, rows: &[Write], wal_pages: i64) -> Connection {
    let conn = plain(&folder.join(name), "FULL", wal_pages);
    write(&conn, rows, PER_COMMIT);
    checkpoint(&conn);
    conn
}

/// Returns the CPU of raw statements with their checkpoint, us per row.
fn raw_cost(conn: &Connection, writes: &[Write], per_txn: usize) -> f64 {
    let spent = cpu(|| {
        write(conn, writes, per_txn);
        checkpoint(conn);
    });
    micros_each(spent.1, writes.len())
}

pub fn client_inserts(options: &Options, report: &mut Report) {
    let rows = options.size(40_000, 400);
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(OWN, &[], 1, true);
    let base = raw(folder.path(), "raw.db", &[], APPLY_WAL_PAGES);
    let batch = |round: usize| inserts(round * rows..(round + 1) * rows, |_| 1);
    let sides =
        Sides::measure(options.rounds, |round| client_cost(&mut world, &batch(round)), |round| raw_cost(&base, &batch(round), PER_COMMIT));
    world.demand_equal(1);
    assert_eq!(count(&base), rows * options.rounds);
    let what = "client: verify, decode, upsert / raw INSERT, 1,000 rows per commit";
    report.lines.push(Line::ratio("P1", what, "us/row", &sides, Better::Lower, 1.6, 1.4));
}

/// Takes writes to the client in units of [`PER_COMMIT`] rows. Returns the client's CPU, us per row.
fn client_cost(world: &mut World, writes: &[Write]) -> f64 {
    let spent = world.pass(writes, PER_COMMIT);
    assert_eq!(spent.delivered, writes.len());
    micros_each(spent.client, spent.delivered)
}

pub fn client_changes(options: &Options, report: &mut Report) {
    let (rows, changed) = (options.size(40_000, 400), options.size(20_000, 200));
    let folder = tempfile::tempdir().unwrap();
    let all = inserts(0..rows, |_| 1);
    let mut world = World::new(OWN, &all, 1, true);
    let base = raw(folder.path(), "raw.db", &all, APPLY_WAL_PAGES);
    let batch = |round: usize| updates(rows, changed, round + 1);
    let sides =
        Sides::measure(options.rounds, |round| client_cost(&mut world, &batch(round)), |round| raw_cost(&base, &batch(round), PER_COMMIT));
    world.demand_equal(1);
    let what = "client: update of 4 columns, random key / raw UPDATE, 1,000 per commit";
    report.lines.push(Line::ratio("P2", what, "us/row", &sides, Better::Lower, 1.2, 1.1));

    let gone = |round: usize| some_of(rows, changed, 900 + round);
    let deletes = |round: usize| -> Vec<Write> { gone(round).into_iter().map(|number| Write::Delete(contact(number, 1, 0))).collect() };
    let again = |round: usize| -> Vec<Write> { gone(round).into_iter().map(|number| Write::Insert(contact(number, 1, 0))).collect() };
    let sides = Sides::measure(
        options.rounds,
        |round| {
            let cost = client_cost(&mut world, &deletes(round));
            world.pass(&again(round), PER_COMMIT);
            cost
        },
        |round| {
            let cost = raw_cost(&base, &deletes(round), PER_COMMIT);
            raw_cost(&base, &again(round), PER_COMMIT);
            cost
        },
    );
    world.demand_equal(1);
    let what = "client: delete, random key / raw DELETE, 1,000 per commit";
    report.lines.push(Line::ratio("P2", what, "us/row", &sides, Better::Lower, 1.2, 1.1));
}

pub fn client_backlog(options: &Options, report: &mut Report) {
    let (rows, changed) = (options.size(200_000, 2_000), options.size(100_000, 1_000));
    let folder = tempfile::tempdir().unwrap();
    let all = inserts(0..rows, |_| 1);
    let mut world = World::new(OWN, &all, 1, true);
    let base = raw(folder.path(), "raw.db", &all, WAL_PAGES_DEFAULT);
    let batch = |round: usize| updates(rows, changed, round + 1);
    // Rates, so that more is better: rows per second of CPU.
    let sides = Sides::measure(
        options.rounds,
        |round| 1e6 / client_cost(&mut world, &batch(round)),
        |round| 1e6 / raw_cost(&base, &batch(round), PER_COMMIT),
    );
    world.demand_equal(1);
    let what = "client: a backlog of random updates, 200,000 rows / raw UPDATE, 1,000 per commit, default WAL";
    report.lines.push(Line::ratio("P3", what, "rows/s CPU", &sides, Better::Higher, 1.5, 2.5));
}

pub fn end_to_end(options: &Options, report: &mut Report) {
    let case = |id, nodes, definition, rows, per_unit| Case { id, nodes, definition, rows, per_unit };
    if options.wants(&["P5"]) {
        let one = case("P5", 1, OWN, options.size(40_000, 400), options.size(20_000, 200));
        one.run(options, report, "1 node: whole path / raw INSERT on server and client", 4.0, 2.8);
    }
    if options.wants(&["P6"]) {
        let hundred = case("P6", options.size(100, 4), OWN, options.size(50_000, 400), options.size(12_500, 100));
        hundred.run(options, report, "100 nodes, each row to one, 500 rows per file: the same", 4.4, 3.3);
    }
    if options.wants(&["P7"]) {
        let broadcast = case("P7", options.size(100, 4), EVERYONE, options.size(4_000, 100), options.size(4_000, 100));
        broadcast.run(options, report, "100 nodes, each row to all: the same", 2.6, 1.9);
    }
}

struct Case {
    id: &'static str,
    nodes: usize,
    definition: &'static str,
    rows: usize,
    per_unit: usize,
}

impl Case {
    fn run(&self, options: &Options, report: &mut Report, what: &str, gate: f64, goal: f64) {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::new(self.definition, &[], self.nodes, true);
        let server = plain(&folder.path().join("server.db"), "NORMAL", 4_000);
        let client = raw(folder.path(), "client.db", &[], APPLY_WAL_PAGES);
        let copies = if self.definition == EVERYONE { self.nodes } else { 1 };
        let batch = |round: usize| inserts(round * self.rows..(round + 1) * self.rows, |number| (number % self.nodes) as i64 + 1);
        let mut stages: [Vec<f64>; 7] = Default::default();
        let (mut all, mut raws) = (Vec::new(), Vec::new());
        let sides = Sides::measure(
            options.rounds,
            |round| {
                let spent = world.pass(&batch(round), self.per_unit);
                assert_eq!(spent.delivered, self.rows * copies);
                let figures = self.figures(&spent);
                all.push(figures);
                figures[..4].iter().sum::<f64>() + figures[4] * copies as f64
            },
            |round| {
                let (server, client) = (raw_cost(&server, &batch(round), PER_TXN), raw_cost(&client, &batch(round), PER_COMMIT));
                raws.push([server, client]);
                server + client * copies as f64
            },
        );
        world.demand_equal(copies);
        for (figures, raws) in all.iter().zip(&raws) {
            figures.iter().chain(raws).zip(&mut stages).for_each(|(figure, of_stage)| of_stage.push(*figure));
        }
        report.lines.push(Line::ratio(self.id, what, "us/row", &sides, Better::Lower, gate, goal));
        report.stages.push(StageLine { id: self.id, figures: stages.map(|figures| median(&figures)) });
    }

    fn figures(&self, spent: &Spent) -> [f64; 5] {
        let server = [spent.commit, spent.txnproc, spent.router, spent.bring].map(|time| micros_each(time, self.rows));
        let [commit, txnproc, router, bring] = server;
        [commit, txnproc, router, bring, micros_each(spent.client, spent.delivered)]
    }
}
