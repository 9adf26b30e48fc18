//! Keys as bytes that sort as the keys do: so a database may keep them sorted, whatever their types.
//!
//! Per value: its rank, then its content. Integers with the sign bit turned, big-endian; reals by their bits; text and blobs with each
//! zero followed by 255, and two zeros at the end.

use crate::model::value::{RowKey, Value};

/// Returns the bytes of a key. Of two keys with the same number of values the lower one has the lower bytes.
pub fn encode(key: &[Value]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.iter().map(|value| value.size() + 3).sum());
    for value in key {
        match value {
            Value::Null => out.push(0),
            Value::Integer(integer) => {
                out.push(1);
                out.extend_from_slice(&(integer.cast_unsigned() ^ (1 << 63)).to_be_bytes());
            }
            Value::Real(real) => {
                out.push(2);
                out.extend_from_slice(&real.to_bits().to_be_bytes());
            }
            Value::Text(bytes) => put_bytes(3, bytes, &mut out),
            Value::Blob(bytes) => put_bytes(4, bytes, &mut out),
        }
    }
    out
}

fn put_bytes(rank: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(rank);
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(255);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

/// Returns the key that the bytes stand for; `None` if they stand for none.
pub fn decode(mut bytes: &[u8]) -> Option<RowKey> {
    let mut key = RowKey::new();
    while let Some((rank, rest)) = bytes.split_first() {
        let (value, rest) = match rank {
            0 => (Value::Null, rest),
            1 | 2 => {
                let (number, rest) = rest.split_first_chunk::<8>()?;
                let bits = u64::from_be_bytes(*number);
                (if *rank == 1 { Value::Integer((bits ^ (1 << 63)).cast_signed()) } else { Value::Real(f64::from_bits(bits)) }, rest)
            }
            3 | 4 => {
                let (content, rest) = take_bytes(rest)?;
                (if *rank == 3 { Value::Text(content) } else { Value::Blob(content) }, rest)
            }
            _ => return None,
        };
        key.push(value);
        bytes = rest;
    }
    Some(key)
}

fn take_bytes(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut content = Vec::new();
    let mut at = 0;
    loop {
        match (bytes.get(at)?, bytes.get(at + 1)) {
            (0, Some(0)) => return Some((content, bytes.get(at + 2..)?)),
            (0, Some(255)) => {
                content.push(0);
                at += 2;
            }
            (0, _) => return None,
            (byte, _) => {
                content.push(*byte);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_sort_as_keys_do_and_come_back() {
        let mut rng = fastrand::Rng::with_seed(36);
        let mut value = || {
            let bytes: Vec<u8> = (0..rng.usize(0..4)).map(|_| [0, 1, 97, 255][rng.usize(0..4)]).collect();
            match rng.u32(0..7) {
                0 => Value::Null,
                1 => Value::Integer(rng.i64(-3..3)),
                2 => Value::Integer([i64::MIN, i64::MAX][rng.usize(0..2)]),
                3 => Value::Real([-1.5, -0.0, 0.0, 1.0, f64::INFINITY][rng.usize(0..5)]),
                4 => Value::Text(bytes),
                _ => Value::Blob(bytes),
            }
        };
        let keys: Vec<RowKey> = (0..600).map(|_| vec![value(), value()]).collect();
        for one in &keys {
            assert_eq!(decode(&encode(one)).as_ref(), Some(one));
            for other in &keys {
                assert_eq!(encode(one).cmp(&encode(other)), one.cmp(other), "{one:?} {other:?}");
            }
        }
        for damaged in [&[9][..], &[1, 0], &[3, 97], &[3, 0], &[3, 0, 7]] {
            assert_eq!(decode(damaged), None, "{damaged:?}");
        }
    }
}
