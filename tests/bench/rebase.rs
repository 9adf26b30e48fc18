//! P18: what pending work of a node adds to applying rows that it does not touch (R24).

use super::meter::{Better, Line, Sides, micros_each};
use super::world::{OWN, World, Write, contact};
use super::{Options, Report};

/// Rows of one unit of the server.
const PER_UNIT: usize = 1_000;
/// Transactions of the local program, each a unit.
const LOCAL_UNITS: usize = 10;

pub fn pending(options: &Options, report: &mut Report) {
    let (edited, changed) = (options.size(10_000, 100), options.size(5_000, 50));
    let all: Vec<Write> = (0..2 * (edited + changed)).map(|number| Write::Insert(contact(number, 1, 0))).collect();
    let (mut with, mut without) = (World::new(OWN, &all, 1, true), World::new(OWN, &all, 1, true));
    let units = with.edit(edited, LOCAL_UNITS);
    assert_eq!(units, LOCAL_UNITS);
    assert_eq!(without.edit(0, 0), 0);
    // Rows that no local program touched, others in each round.
    let batch = |round: usize| -> Vec<Write> {
        let first = edited + round % 2 * changed;
        (first..first + changed).map(|number| Write::Update(contact(number, 1, round + 1))).collect()
    };
    let cost = |world: &mut World, writes: &[Write]| {
        let spent = world.pass(writes, PER_UNIT);
        assert_eq!(spent.delivered, writes.len());
        micros_each(spent.client, spent.delivered)
    };
    let sides = Sides::measure(options.rounds, |round| cost(&mut with, &batch(round)), |round| cost(&mut without, &batch(round)));
    without.demand_equal(1);
    with.demand_pending(edited, units);
    let what = "client: 5,000 rows changed on the server, beside 10,000 pending ones / without";
    report.lines.push(Line::ratio("P18", what, "us/row", &sides, Better::Lower, 1.3, 1.1));
}
