//! Time windows: whether a row is inside one on a day. The same for routing, extracts and the rights of a merge.

use crate::model::dock::Window;
use crate::model::value::Value;

/// Returns whether a row is inside a window on a day (days since 1970). NULL and unreadable dates stay inside.
pub(crate) fn window_holds(window: &Window, row: &[Value], day: i64) -> bool {
    row.get(window.column).and_then(day_of).is_none_or(|date| date >= day - i64::from(window.days))
}

/// Returns the day of a date value: text that begins `YYYY-MM-DD`, or whole seconds since 1970.
pub(crate) fn day_of(value: &Value) -> Option<i64> {
    match value {
        Value::Text(bytes) => {
            let text = std::str::from_utf8(bytes.get(..10)?).ok()?;
            let date: jiff::civil::Date = text.parse().ok()?;
            // The parser also takes other spellings of ten characters; only this one sorts as text.
            (date.to_string() == text).then(|| (date - jiff::civil::date(1970, 1, 1)).get_days().into())
        }
        Value::Integer(seconds) => Some(seconds.div_euclid(86_400)),
        _ => None,
    }
}
