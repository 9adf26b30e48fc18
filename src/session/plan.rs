//! What a node asks for: the gaps in its inbox, then the rest.

use crate::base::ids::FileNo;
use crate::session::message::Mode;
use std::collections::BTreeSet;

/// Files to ask for in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First file.
    pub first: FileNo,
    /// Last file; `None` = all, and those to come.
    pub last: Option<FileNo>,
    /// Bytes of the first file that are here already.
    pub offset: u64,
}

/// Returns what is missing: the gaps between the files that the inbox has, then the rest up to `last`, in watch mode without end.
/// `part` is a file of which some bytes are here.
pub fn plan(applied: FileNo, inbox: &BTreeSet<FileNo>, last: FileNo, mode: Mode, part: Option<(FileNo, u64)>) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut next = applied.next();
    for have in inbox.iter().copied().filter(|have| *have > applied) {
        if have > next {
            ranges.push(Range { first: next, last: Some(FileNo(have.0 - 1)), offset: 0 });
        }
        next = have.next();
    }
    if mode == Mode::Watch {
        ranges.push(Range { first: next, last: None, offset: 0 });
    } else if next <= last {
        ranges.push(Range { first: next, last: Some(last), offset: 0 });
    }
    if let (Some(first), Some((file, bytes))) = (ranges.first_mut(), part)
        && first.first == file
    {
        first.offset = bytes;
    }
    ranges
}
