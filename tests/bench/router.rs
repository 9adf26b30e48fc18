//! P8: what registered nodes cost the Router that nothing is for.

use super::meter::{Better, Line, Sides, cpu, micros_each};
use super::world::{OWN, PER_TXN, World, Write, contact, write};
use super::{Options, Report};

/// Nodes that get something in every round.
const MATCHED: usize = 100;

pub fn registered_nodes(options: &Options, report: &mut Report) {
    let (rows, matched) = (options.size(10_000, 200), options.size(MATCHED, 10));
    let mut many = World::new(OWN, &[], options.size(100_000, 200), false);
    let mut few = World::new(OWN, &[], matched, false);
    let cost = |world: &mut World, round: usize| {
        // A transaction is for one node, as most are.
        let owner = |number: usize| (number / PER_TXN % matched) as i64 + 1;
        let writes: Vec<Write> =
            (round * rows..(round + 1) * rows).map(|number| Write::Insert(contact(number, owner(number), 0))).collect();
        write(&world.writer, &writes, PER_TXN);
        world.process();
        let spent = cpu(|| world.route());
        micros_each(spent.1, rows / PER_TXN)
    };
    // The first round makes folders and fills caches on both sides.
    let _ = (cost(&mut many, 0), cost(&mut few, 0));
    let sides = Sides::measure(options.rounds, |round| cost(&mut many, round + 1), |round| cost(&mut few, round + 1));
    let files = |world: &World| -> usize {
        let nodes = world.direct.root.nodes().unwrap();
        nodes.iter().map(|node| dockmaster::docking::queue::list(&world.direct.root.outbox(node)).unwrap().files.len()).sum()
    };
    assert_eq!((files(&many), files(&few)), (matched * (options.rounds + 1), matched * (options.rounds + 1)), "same files on both sides");
    let what = "router: 100,000 registered nodes / 100, the same 100 files per round";
    report.lines.push(Line::ratio("P8", what, "us/txn", &sides, Better::Lower, 1.3, 1.1));
}
