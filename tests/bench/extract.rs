//! P15: a node's whole first database.

use super::meter::{Better, Line, Sides, cpu, micros_each};
use super::world::{OWN, SCHEMA, World, Write, contact, count, node_name, register};
use super::{Options, Report};
use dockmaster::server::extract::{ExtractJob, build};
use dockmaster::server::txnproc::PendingExtracts;
use rusqlite::Connection;

pub fn extract(options: &Options, report: &mut Report) {
    let (visible, others) = (options.size(1_000_000, 2_000), options.size(100_000, 200));
    let rows: Vec<Write> = (0..visible + others).map(|number| Write::Insert(contact(number, 1 + (number % 11 == 10) as i64, 0))).collect();
    let mut world = World::new(OWN, &rows, 0, false);
    drop(rows);
    let folder = tempfile::tempdir().unwrap();
    let sides = Sides::measure(
        options.rounds,
        |round| {
            register(&world.direct, 1, round as u32 + 1);
            let [pending] = <[PendingExtracts; 1]>::try_from(world.txnproc.step().unwrap().extracts).unwrap();
            let [node] = pending.nodes.as_slice() else { panic!("one node was started") };
            let (toc, spent) = cpu(|| {
                pending.select_rows(node).unwrap();
                build(&ExtractJob {
                    cds: &pending.snapshot,
                    dock: &pending.dock,
                    schema: &pending.schema,
                    server_id: pending.state.server_id,
                    server_name: &pending.state.server_name,
                    epoch: pending.state.epoch,
                    node: &node_name(1),
                    incarnation: node.node.incarnation,
                    unit: pending.state.position,
                    revision: pending.state.revision,
                    root: &world.direct.root,
                    finished: &[],
                    common: None,
                })
                .unwrap()
            });
            assert_eq!(toc.rows as usize, visible);
            micros_each(spent, visible)
        },
        |_| {
            let path = folder.path().join("copy.db");
            let conn = Connection::open(&path).unwrap();
            conn.execute("ATTACH ?1 AS hq", [world.direct.site.path("hq.db").to_str().unwrap()]).unwrap();
            let (_, spent) = cpu(|| {
                conn.execute_batch(SCHEMA).unwrap();
                conn.execute("INSERT INTO contact SELECT * FROM hq.contact WHERE owner = 1", []).unwrap();
            });
            assert_eq!(count(&conn), visible);
            drop(conn);
            std::fs::remove_file(path).unwrap();
            micros_each(spent, visible)
        },
    );
    let what = "extract of 1,000,000 visible rows / INSERT .. SELECT of them";
    report.lines.push(Line::ratio("P15", what, "us/row", &sides, Better::Lower, 2.0, 1.3));
}
