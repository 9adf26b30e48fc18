//! Digests of rows that do not depend on their order, and what a comparison by them found (R42).
//!
//! Server and node compute them over the same columns in the same encoding: type and bytes of each value, so `1` and `1.0` differ. The
//! first round compares sums per bucket of keys; the second lists the rows of the buckets that differed.

use crate::base::ids::TxnId;
use crate::base::limits::{VERIFY_BUCKETS_MAX, VERIFY_FOUND_MAX};
use crate::model::event::{BucketDigest, TableDigest};
use crate::model::value::{Value, display_key};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Rows per bucket that are aimed at.
const BUCKET_ROWS: u64 = 64;
/// Longest text of a key that a node reports, in bytes.
pub const KEY_BYTES_MAX: usize = 100;

/// Buckets of one table that are asked for row by row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketChoice {
    /// The table.
    pub table: String,
    /// Over how many buckets its keys are spread: as in the first round.
    pub bucket_count: u32,
    /// The buckets.
    pub buckets: Vec<u32>,
}

/// What a node found in one table at a mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableOutcome {
    /// Number of the question.
    pub id: u64,
    /// The unit at whose end both sides were compared.
    pub unit: TxnId,
    /// How many tables the question has, and which of them this is, from 0.
    pub tables: u32,
    /// See `tables`.
    pub place: u32,
    /// The table.
    pub table: String,
    /// Over how many buckets the keys are spread.
    pub bucket_count: u32,
    /// The buckets that differ; at most [`VERIFY_BUCKETS_MAX`].
    pub buckets: Vec<u32>,
    /// In the second round the rows that differ; at most [`VERIFY_FOUND_MAX`].
    pub found: Vec<Difference>,
    /// How many more buckets or rows differ than are listed.
    pub more: u64,
    /// Why the table could not be compared; empty if it was.
    pub problem: String,
}

impl TableOutcome {
    /// Returns whether the table is the same on both sides.
    pub fn is_equal(&self) -> bool {
        self.buckets.is_empty() && self.found.is_empty() && self.more == 0 && self.problem.is_empty()
    }
}

/// A row that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// In which way.
    pub kind: DifferenceKind,
    /// Hash of its key.
    pub key_hash: u64,
    /// The key for people; empty where the node does not have the row.
    pub key: String,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DifferenceKind {
    /// The node does not have it.
    Missing,
    /// Only the node has it.
    Extra,
    /// Both have it, with other values.
    Different,
}

fn feed(hash: &mut Sha256, values: &[Value]) {
    for value in values {
        let (tag, content): (u8, &[u8]) = match value {
            Value::Null => (0, &[]),
            Value::Integer(integer) => (1, &integer.to_le_bytes()),
            Value::Real(real) => (2, &real.to_bits().to_le_bytes()),
            Value::Text(bytes) => (3, bytes),
            Value::Blob(bytes) => (4, bytes),
        };
        hash.update([tag]);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
}

/// Returns the hash by which keys are spread over buckets and told apart.
pub fn key_hash(key: &[Value]) -> u64 {
    let mut hash = Sha256::new_with_prefix(b"key");
    feed(&mut hash, key);
    first_eight(&hash.finalize().into())
}

fn first_eight(hash: &[u8; 32]) -> u64 {
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// Returns over how many buckets the keys of so many rows are spread.
pub fn bucket_count(rows: u64) -> u32 {
    u32::try_from((rows / BUCKET_ROWS).clamp(1, VERIFY_BUCKETS_MAX as u64)).unwrap_or(1)
}

/// Sums up the rows of one table.
#[derive(Debug)]
pub struct Digester {
    bucket_count: u32,
    /// In the second round: only these, row by row.
    wanted: Option<Vec<u32>>,
    buckets: BTreeMap<u32, BucketDigest>,
}

impl Digester {
    /// Returns one for the first round, or with `wanted` for the second.
    pub fn new(bucket_count: u32, wanted: Option<Vec<u32>>) -> Digester {
        let empty = |bucket: &u32| (*bucket, BucketDigest { bucket: *bucket, rows: 0, sum: [0; 16], each: Vec::new() });
        let buckets = wanted.iter().flatten().map(empty).collect();
        Digester { bucket_count: bucket_count.max(1), wanted, buckets }
    }

    /// Returns one for the same question.
    pub fn for_question(question: &TableDigest) -> Digester {
        // The first round lists buckets that have rows, and none of these.
        let is_second = question.buckets.iter().any(|bucket| bucket.rows == 0 || !bucket.each.is_empty());
        let wanted = is_second.then(|| question.buckets.iter().map(|bucket| bucket.bucket).collect());
        Digester::new(question.bucket_count, wanted)
    }

    /// Adds a row; returns the hash of its key if the row is listed by itself.
    pub fn add(&mut self, key: &[Value], row: &[Value]) -> Option<u64> {
        let key = key_hash(key);
        // Below the count, so it fits.
        let bucket = u32::try_from(key % u64::from(self.bucket_count)).unwrap_or_default();
        if self.wanted.as_ref().is_some_and(|wanted| !wanted.contains(&bucket)) {
            return None;
        }
        let mut hash = Sha256::new_with_prefix(b"row");
        feed(&mut hash, row);
        let hash: [u8; 32] = hash.finalize().into();
        let digest = self.buckets.entry(bucket).or_insert(BucketDigest { bucket, rows: 0, sum: [0; 16], each: Vec::new() });
        let mut number = [0; 16];
        number.copy_from_slice(&hash[..16]);
        digest.sum = u128::from_le_bytes(digest.sum).wrapping_add(u128::from_le_bytes(number)).to_le_bytes();
        digest.rows += 1;
        self.wanted.as_ref()?;
        digest.each.push((key, first_eight(&hash)));
        Some(key)
    }

    /// Returns the digests, buckets in order, rows in the order of their key hashes.
    pub fn finish(self) -> Vec<BucketDigest> {
        let mut buckets: Vec<BucketDigest> = self.buckets.into_values().collect();
        for bucket in &mut buckets {
            bucket.each.sort_unstable();
        }
        buckets
    }
}

/// Compares a table of a mark with the node's own digests. `keys` are the node's keys of the rows that are listed.
pub fn compare(theirs: &TableDigest, ours: &[BucketDigest], keys: &BTreeMap<u64, Vec<Value>>) -> (Vec<u32>, Vec<Difference>, u64) {
    let by_number = |buckets: &[BucketDigest]| buckets.iter().map(|bucket| (bucket.bucket, bucket.clone())).collect::<BTreeMap<_, _>>();
    let (theirs, ours) = (by_number(&theirs.buckets), by_number(ours));
    let same = |bucket: &u32| match (theirs.get(bucket), ours.get(bucket)) {
        (Some(a), Some(b)) => (a.rows, a.sum) == (b.rows, b.sum),
        (a, b) => a.or(b).is_none_or(|bucket| bucket.rows == 0),
    };
    let mut numbers: Vec<u32> = theirs.keys().chain(ours.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.retain(|bucket| !same(bucket));
    let rows = |buckets: &BTreeMap<u32, BucketDigest>| -> BTreeMap<u64, u64> {
        numbers.iter().filter_map(|bucket| buckets.get(bucket)).flat_map(|bucket| bucket.each.iter().copied()).collect()
    };
    let (their_rows, our_rows) = (rows(&theirs), rows(&ours));
    let mut found = Vec::new();
    for (key, hash) in &their_rows {
        match our_rows.get(key) {
            None => found.push(difference(DifferenceKind::Missing, *key, keys)),
            Some(ours) if ours != hash => found.push(difference(DifferenceKind::Different, *key, keys)),
            Some(_) => {}
        }
    }
    found.extend(our_rows.keys().filter(|key| !their_rows.contains_key(key)).map(|key| difference(DifferenceKind::Extra, *key, keys)));
    let is_second = !their_rows.is_empty() || !our_rows.is_empty();
    let more = if is_second { found.len().saturating_sub(VERIFY_FOUND_MAX) } else { numbers.len().saturating_sub(VERIFY_BUCKETS_MAX) };
    numbers.truncate(VERIFY_BUCKETS_MAX);
    found.truncate(VERIFY_FOUND_MAX);
    (numbers, found, more as u64)
}

/// Cuts a text to a length in bytes, between characters.
pub fn shortened(mut text: String, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text.truncate(end);
    text
}

fn difference(kind: DifferenceKind, key_hash: u64, keys: &BTreeMap<u64, Vec<Value>>) -> Difference {
    let key = keys.get(&key_hash).map(|key| shortened(display_key(key), KEY_BYTES_MAX)).unwrap_or_default();
    Difference { kind, key_hash, key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::TableHeading;

    fn table(rows: &[(i64, &str)], wanted: Option<Vec<u32>>) -> TableDigest {
        let mut digester = Digester::new(4, wanted);
        for (id, text) in rows {
            digester.add(&[Value::Integer(*id)], &[Value::Integer(*id), Value::text(text)]);
        }
        let heading = TableHeading { name: "t".into(), columns: vec!["id".into(), "text".into()], key: vec![0] };
        TableDigest { heading, bucket_count: 4, buckets: digester.finish() }
    }

    #[test]
    fn r42_order_does_not_count_and_every_kind_of_difference_is_found() {
        let server = [(1, "a"), (2, "b"), (3, "c"), (4, "d")];
        let mut turned = server;
        turned.reverse();
        assert_eq!(table(&server, None), table(&turned, None));
        let node = [(2, "b"), (3, "C"), (4, "d"), (5, "e")];
        let (buckets, found, more) = compare(&table(&server, None), &table(&node, None).buckets, &BTreeMap::new());
        assert!(!buckets.is_empty() && found.is_empty() && more == 0);
        let keys = [2, 3, 4, 5].map(|id| (key_hash(&[Value::Integer(id)]), vec![Value::Integer(id)])).into();
        let (_, mut found, _) = compare(&table(&server, Some(buckets.clone())), &table(&node, Some(buckets)).buckets, &keys);
        found.sort();
        let kinds: Vec<(DifferenceKind, &str)> = found.iter().map(|found| (found.kind, found.key.as_str())).collect();
        assert_eq!(kinds, [(DifferenceKind::Missing, ""), (DifferenceKind::Extra, "5"), (DifferenceKind::Different, "3")]);
        assert_eq!(found[0].key_hash, key_hash(&[Value::Integer(1)]));
    }

    #[test]
    fn r42_a_table_that_is_empty_on_one_side_is_not_equal() {
        let (buckets, _, _) = compare(&table(&[], None), &table(&[(1, "a")], None).buckets, &BTreeMap::new());
        assert_eq!(buckets.len(), 1);
        let empty = table(&[], Some(buckets.clone()));
        assert!(Digester::for_question(&empty).wanted.is_some(), "the second round is known by its empty buckets");
        let (_, found, _) = compare(&empty, &table(&[(1, "a")], Some(buckets)).buckets, &BTreeMap::new());
        assert_eq!(found[0].kind, DifferenceKind::Extra);
    }
}
