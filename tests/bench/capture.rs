//! P4: what capture adds to a program's own transactions on the server.

use super::meter::{Better, Line, Sides, cpu, micros_each};
use super::world::{OWN, PER_TXN, World, Write, checkpoint, contact, plain, write};
use super::{Options, Report};
use rusqlite::Connection;

pub fn capture(options: &Options, report: &mut Report) {
    let rows = options.size(20_000, 200);
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(OWN, &[], 1, true);
    let base = plain(&folder.path().join("raw.db"), "NORMAL", 4_000);
    let cost = |conn: &Connection, writes: &[Write]| {
        let spent = cpu(|| {
            write(conn, writes, PER_TXN);
            checkpoint(conn);
        });
        micros_each(spent.1, writes.len())
    };
    let inserts =
        |round: usize| -> Vec<Write> { (round * rows..(round + 1) * rows).map(|number| Write::Insert(contact(number, 1, 0))).collect() };
    let updates = |round: usize| -> Vec<Write> {
        let mut numbers: Vec<usize> = (0..rows * options.rounds).collect();
        fastrand::Rng::with_seed(round as u64).shuffle(&mut numbers);
        numbers.into_iter().take(rows).map(|number| Write::Update(contact(number, 1, round + 1))).collect()
    };
    let sides = Sides::measure(options.rounds, |round| cost(&world.writer, &inserts(round)), |round| cost(&base, &inserts(round)));
    let what = "server: 10-row transactions of INSERT, with / without capture";
    report.lines.push(Line::ratio("P4", what, "us/row", &sides, Better::Lower, 2.3, 1.9));
    let sides = Sides::measure(options.rounds, |round| cost(&world.writer, &updates(round)), |round| cost(&base, &updates(round)));
    let what = "server: 10-row transactions of UPDATE, random key, with / without capture";
    report.lines.push(Line::ratio("P4", what, "us/row", &sides, Better::Lower, 2.3, 1.9));
    // What was captured is what was written: all of it arrives.
    world.process();
    world.route();
    world.bring();
    assert_eq!(world.apply(), rows * options.rounds, "one net change per row");
}
