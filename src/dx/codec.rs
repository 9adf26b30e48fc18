//! The seam to bincode: the one fixed configuration, and the checks that bincode leaves to its caller.
//!
//! bincode does not check the limit when it encodes, ignores trailing bytes, lets zero-sized elements pass any limit
//! and overflows the stack on recursive types. So: sizes are checked here on both sides, `consumed == length` is
//! checked here, and record types hold neither zero-sized elements nor themselves.

use crate::base::limits::DX_RECORD_BYTES_MAX;
use crate::dx::error::DxError;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Little-endian, variable-length integers, and a limit on what a claimed length may allocate.
fn configuration<const MAX: usize>() -> Configuration<LittleEndian, Varint, Limit<MAX>> {
    bincode::config::standard().with_limit::<MAX>()
}

/// Appends the encoding of `value` to `out`.
///
/// # Errors
/// If the encoding is longer than a record may be; `out` is then as before.
pub fn encode_into<T: Serialize>(what: &'static str, value: &T, out: &mut Vec<u8>) -> Result<(), DxError> {
    encode_up_to::<DX_RECORD_BYTES_MAX, T>(what, value, out)
}

/// As [`encode_into`], with a limit of its own: for what is cut into several records.
pub(crate) fn encode_up_to<const MAX: usize, T: Serialize>(what: &'static str, value: &T, out: &mut Vec<u8>) -> Result<(), DxError> {
    let start = out.len();
    let written = bincode::serde::encode_into_std_write(value, out, configuration::<MAX>());
    let length = out.len() - start;
    let result = match written {
        Err(error) => Err(DxError::Decode { what, reason: error.to_string() }),
        Ok(_) if length > MAX => Err(DxError::TooLarge { what, value: length as u64, limit: MAX as u64 }),
        Ok(_) => Ok(()),
    };
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Returns the encoding of `value`.
///
/// # Errors
/// If it is longer than a record may be.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, DxError> {
    let mut out = Vec::new();
    encode_into(what, value, &mut out)?;
    Ok(out)
}

/// Returns the value that `bytes`, all of them, stand for.
///
/// # Errors
/// If they are no such value, are too many, or go on after it.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DxError> {
    decode_up_to::<DX_RECORD_BYTES_MAX, T>(what, bytes)
}

/// As [`decode`], with a limit of its own: for what was cut into several records.
pub(crate) fn decode_up_to<const MAX: usize, T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DxError> {
    if bytes.len() > MAX {
        return Err(DxError::TooLarge { what, value: bytes.len() as u64, limit: MAX as u64 });
    }
    let (value, consumed) = bincode::serde::decode_from_slice(bytes, configuration::<MAX>())
        .map_err(|error| DxError::Decode { what, reason: error.to_string() })?;
    if consumed != bytes.len() {
        return Err(DxError::Decode { what, reason: format!("{} bytes follow its end", bytes.len() - consumed) });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::value::Value;

    #[test]
    fn pinned_layout_of_values() {
        // The bytes of docs/dx-format.md 5: they must outlive the crate that writes them.
        let row = vec![Value::Null, Value::Integer(-2), Value::Integer(300), Value::Real(1.0), Value::text("ab"), Value::Blob(vec![0])];
        let bytes = encode("row", &row).unwrap();
        assert_eq!(hex::encode(&bytes), "06000103 01fb5802 02000000000000f03f 03026162 040100".replace(' ', ""));
        assert_eq!(decode::<Vec<Value>>("row", &bytes).unwrap(), row);
    }

    #[test]
    fn trailing_bytes_and_claimed_lengths_are_refused() {
        let mut bytes = encode("value", &Value::Integer(1)).unwrap();
        bytes.push(0);
        assert!(decode::<Value>("value", &bytes).is_err());
        // A blob that claims 2^62 bytes, and a row that claims 2^62 values.
        let mut blob = vec![4, 253];
        blob.extend_from_slice(&(1u64 << 62).to_le_bytes());
        assert!(decode::<Value>("value", &blob).is_err());
        assert!(decode::<Vec<Value>>("row", &blob[1..]).is_err());
    }

    #[test]
    fn an_encoding_over_the_limit_is_refused_by_the_sender() {
        let mut out = vec![7];
        let large = Value::Blob(vec![0; DX_RECORD_BYTES_MAX]);
        assert!(matches!(encode_into("value", &large, &mut out), Err(DxError::TooLarge { .. })));
        assert_eq!(out, [7]);
    }
}
