//! Values as JSON: how conflicts keep them for people and applications.
//!
//! Null, numbers and text stand as themselves; what JSON would blur is an object that names what it is. Nothing is lost on the way back.

use crate::model::value::Value;
use serde_json::{Value as Json, json};

/// Returns a value as JSON.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(integer) => (*integer).into(),
        Value::Real(real) if real.is_finite() => (*real).into(),
        Value::Real(real) => json!({ "real": format!("{real:?}") }),
        Value::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => json!({ "text_hex": hex::encode(bytes) }),
        },
        Value::Blob(bytes) => json!({ "blob_hex": hex::encode(bytes) }),
    }
}

/// Returns the value that JSON stands for; `None` if it stands for none.
pub fn from_json(json: &Json) -> Option<Value> {
    match json {
        Json::Null => Some(Value::Null),
        Json::Bool(_) | Json::Array(_) => None,
        Json::Number(number) => number.as_i64().map(Value::Integer).or_else(|| number.as_f64().map(Value::Real)),
        Json::String(text) => Some(Value::text(text)),
        Json::Object(object) => {
            let mut fields = object.iter();
            let (name, content) = fields.next().filter(|_| object.len() == 1)?;
            let text = content.as_str()?;
            match name.as_str() {
                "real" => text.parse().ok().filter(|real: &f64| !real.is_nan()).map(Value::Real),
                "text_hex" => hex::decode(text).ok().map(Value::Text),
                "blob_hex" => hex::decode(text).ok().map(Value::Blob),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r38_every_value_comes_back_by_type_and_bytes() {
        for value in [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Integer(7),
            Value::Real(7.0),
            Value::Real(-0.0),
            Value::Real(0.1),
            Value::Real(f64::NEG_INFINITY),
            Value::text("Müller\0"),
            Value::Text(vec![0xff, 0]),
            Value::Blob(vec![0, 255]),
        ] {
            let text = to_json(&value).to_string();
            assert_eq!(from_json(&serde_json::from_str(&text).unwrap()), Some(value), "{text}");
        }
        for wrong in ["true", "[]", "{}", r#"{"blob_hex":"0"}"#, r#"{"real":"NaN"}"#, r#"{"blob_hex":"00","real":"1"}"#] {
            assert_eq!(from_json(&serde_json::from_str(wrong).unwrap()), None, "{wrong}");
        }
    }
}
