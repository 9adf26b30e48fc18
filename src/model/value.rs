//! One column value, byte-exact: what SQLite stores, in its five storage classes.
//!
//! Two comparisons exist and must not be mixed up. *Identity* (`==`, `Hash`) is by type and bytes: it finds changed
//! columns, so `1` and `1.0`, `'smith'` and `'Smith'` differ (R5). *Join equality* is `fold(collation)` on both
//! sides: what SQLite's `=` says for two columns of that collation (R35).

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A value of one column.
#[derive(Clone, Serialize, Deserialize)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// A 64-bit signed integer.
    Integer(i64),
    /// A 64-bit float; never NaN, which SQLite stores as NULL.
    Real(f64),
    /// Text as its bytes: SQLite does not promise valid UTF-8, nor the absence of NUL (R38).
    Text(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes.
    Blob(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// A row's values in the order of its table's columns.
pub type Row = Vec<Value>;

/// A row's primary key values in the order of the table's key columns.
pub type RowKey = Vec<Value>;

/// Collations that the data store knows; anything else is refused by `check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum Collation {
    /// By bytes.
    #[default]
    Binary,
    /// ASCII letters without case.
    NoCase,
    /// Trailing spaces do not count.
    Rtrim,
}

impl Collation {
    /// Returns the collation of that SQL name, in any case; `None` for one that an application defined.
    pub fn from_name(name: &str) -> Option<Collation> {
        match name.to_ascii_uppercase().as_str() {
            "BINARY" => Some(Collation::Binary),
            "NOCASE" => Some(Collation::NoCase),
            "RTRIM" => Some(Collation::Rtrim),
            _ => None,
        }
    }

    /// Returns the SQL name.
    pub fn name(self) -> &'static str {
        match self {
            Collation::Binary => "BINARY",
            Collation::NoCase => "NOCASE",
            Collation::Rtrim => "RTRIM",
        }
    }
}

impl Value {
    /// Returns a text value.
    pub fn text(text: &str) -> Value {
        Value::Text(text.as_bytes().to_vec())
    }

    /// Returns whether this is SQL NULL, which equals nothing in a join.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Returns the canonical form under which two values are equal in a join: whole reals become integers, text is
    /// folded by the collation.
    pub fn fold(&self, collation: Collation) -> Value {
        match self {
            // 2^63 as f64: below it a whole real converts exactly.
            Value::Real(real) if real.fract() == 0.0 && *real >= -9.223_372_036_854_776e18 && *real < 9.223_372_036_854_776e18 => {
                Value::Integer(*real as i64)
            }
            Value::Text(bytes) => match collation {
                Collation::Binary => self.clone(),
                Collation::NoCase => {
                    let mut folded = bytes.to_ascii_lowercase();
                    // SQLite compares no further than a NUL; of what follows only the length counts.
                    if let Some(nul) = folded.iter().position(|byte| *byte == 0) {
                        folded[nul..].fill(0);
                    }
                    Value::Text(folded)
                }
                Collation::Rtrim => {
                    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
                    Value::Text(bytes.get(..end).unwrap_or_default().to_vec())
                }
            },
            other => other.clone(),
        }
    }

    /// Compares as SQLite's `ORDER BY` does under the collation BINARY: NULL, numbers by value, text, blobs. `1` and `1.0` are equal here.
    pub fn sql_order(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Integer(a), Value::Real(b)) => integer_to_real(*a, *b),
            (Value::Real(a), Value::Integer(b)) => integer_to_real(*b, *a).reverse(),
            (Value::Real(a), Value::Real(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
            _ => self.cmp(other),
        }
    }

    /// Returns whether two values are equal in a join: whether their folded forms are.
    pub fn folds_to(&self, other: &Value, collation: Collation) -> bool {
        // Most are the same already, and folding copies.
        self == other || self.fold(collation) == other.fold(collation)
    }

    /// Returns the bytes that the value takes in memory and, about, in a file.
    pub fn size(&self) -> usize {
        match self {
            Value::Null => 1,
            Value::Integer(_) | Value::Real(_) => 9,
            Value::Text(bytes) | Value::Blob(bytes) => bytes.len() + 3,
        }
    }

    /// Returns the name of the storage class, as SQL's `typeof` spells it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Integer(_) => "integer",
            Value::Real(_) => "real",
            Value::Text(_) => "text",
            Value::Blob(_) => "blob",
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Integer(_) => 1,
            Value::Real(_) => 2,
            Value::Text(_) => 3,
            Value::Blob(_) => 4,
        }
    }
}

/// Compares exactly: neither number is converted to the other's type where that loses anything.
fn integer_to_real(integer: i64, real: f64) -> Ordering {
    // 2^63 as f64, the first real above every integer.
    if real >= 9.223_372_036_854_776e18 {
        return Ordering::Less;
    }
    if real < -9.223_372_036_854_776e18 {
        return Ordering::Greater;
    }
    integer.cmp(&(real.trunc() as i64)).then_with(|| 0.0f64.partial_cmp(&real.fract()).unwrap_or(Ordering::Equal))
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Value) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A total order by storage class, then bytes. Not SQL's order: it serves maps and stable output.
impl Ord for Value {
    fn cmp(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
            (Value::Real(a), Value::Real(b)) => a.to_bits().cmp(&b.to_bits()),
            (Value::Text(a), Value::Text(b)) | (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(self.rank());
        match self {
            Value::Null => {}
            Value::Integer(integer) => state.write_i64(*integer),
            Value::Real(real) => state.write_u64(real.to_bits()),
            Value::Text(bytes) | Value::Blob(bytes) => bytes.hash(state),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The value as an SQL literal.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("NULL"),
            Value::Integer(integer) => write!(f, "{integer}"),
            Value::Real(real) => write!(f, "{real:?}"),
            Value::Text(bytes) => write!(f, "'{}'", String::from_utf8_lossy(bytes).replace('\'', "''")),
            Value::Blob(bytes) => write!(f, "X'{}'", hex::encode_upper(bytes)),
        }
    }
}

impl From<i64> for Value {
    fn from(integer: i64) -> Value {
        Value::Integer(integer)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::text(text)
    }
}

/// Writes a key as people read it: `10248` or `(10248, 11)`.
pub fn display_key(key: &[Value]) -> String {
    match key {
        [single] => single.to_string(),
        several => format!("({})", several.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r5_identity_sees_type_and_case_joins_do_not() {
        assert_ne!(Value::Integer(1), Value::Real(1.0));
        assert_ne!(Value::text("smith"), Value::text("Smith"));
        assert_eq!(Value::Integer(1).fold(Collation::Binary), Value::Real(1.0).fold(Collation::Binary));
        assert_eq!(Value::text("Smith").fold(Collation::NoCase), Value::text("smith").fold(Collation::NoCase));
        assert_ne!(Value::text("Smith").fold(Collation::Binary), Value::text("smith").fold(Collation::Binary));
        assert_eq!(Value::text("a  ").fold(Collation::Rtrim), Value::text("a").fold(Collation::Rtrim));
        assert_eq!(Value::Real(9.3e18).fold(Collation::Binary), Value::Real(9.3e18));
    }

    #[test]
    fn r6_the_order_of_a_comparison_is_sqlites() {
        let values = [
            Value::Null,
            Value::Real(f64::NEG_INFINITY),
            Value::Integer(i64::MIN),
            Value::Real(-1.5),
            Value::Integer(-1),
            Value::Real(-0.5),
            Value::Real(-0.0),
            Value::Integer(0),
            Value::Real(0.25),
            Value::Integer(1),
            Value::Real(1.0),
            Value::Real(9_007_199_254_740_992.0),
            Value::Integer(9_007_199_254_740_993),
            Value::Integer(i64::MAX),
            Value::Real(9.223_372_036_854_776e18),
            Value::Real(f64::INFINITY),
            Value::text(""),
            Value::text("1"),
            Value::text("A"),
            Value::text("a"),
            Value::Blob(vec![]),
            Value::Blob(vec![0xff]),
        ];
        for (at, a) in values.iter().enumerate() {
            for (other, b) in values.iter().enumerate() {
                let equal = a == b || [(6, 7), (7, 6), (9, 10), (10, 9)].contains(&(at, other));
                let expected = if equal { Ordering::Equal } else { at.cmp(&other) };
                assert_eq!(a.sql_order(b), expected, "{a} {b}");
            }
        }
    }
}
