//! P9: durable files of many nodes, as a group and one by one.

use super::meter::{Better, Line, Sides};
use super::{Options, Report};
use dockmaster::base::disk::Disk;
use std::path::PathBuf;
use std::time::Instant;

const FILE_BYTES: usize = 4 << 10;

pub fn durable_files(options: &Options, report: &mut Report) {
    let (nodes, times) = (options.size(100, 4), options.size(10, 1));
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new();
    let node = |side: &str, number: usize, part: &str| folder.path().join(side).join(format!("N{number}")).join(part);
    for (side, number) in ["group", "single"].iter().flat_map(|side| (0..nodes).map(move |number| (side, number))) {
        disk.ensure_folder(&node(side, number, "outbox")).unwrap();
        disk.ensure_folder(&node(side, number, "tmp")).unwrap();
    }
    let content: Vec<u8> = (0..FILE_BYTES).map(|_| fastrand::u8(..)).collect();
    let rate = |side: &str, round: usize| {
        let began = Instant::now();
        for time in 0..times {
            let name = format!("{:08}.dx", round * times + time + 1);
            let places: Vec<(PathBuf, PathBuf)> =
                (0..nodes).map(|number| (node(side, number, "tmp"), node(side, number, "outbox"))).collect();
            if side == "group" {
                let mut group = disk.group();
                for (tmp, outbox) in &places {
                    group.add(tmp, outbox, &name, |out| out.write_all(&content)).unwrap();
                }
                group.commit().unwrap();
            } else {
                for (tmp, outbox) in &places {
                    disk.put(tmp, outbox, &name, &content).unwrap();
                }
            }
        }
        (nodes * times) as f64 / began.elapsed().as_secs_f64()
    };
    let sides = Sides::measure(options.rounds, |round| rate("group", round), |round| rate("single", round));
    let whole = (0..nodes).flat_map(|number| std::fs::read_dir(node("group", number, "outbox")).unwrap());
    assert!(whole.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).all(|bytes| bytes == content));
    let what = "disk: durable files of 100 nodes, 4 KB, as a group / one by one";
    report.lines.push(Line::ratio("P9", what, "files/s", &sides, Better::Higher, 1.5, 2.5));
}
