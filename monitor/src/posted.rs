//! Fields of what clients post. Each is bounded, and what does not fit is refused by its name, in one sentence.

use crate::ids::Tgid;
use serde_json::Value;
use std::collections::BTreeMap;

/// Labels of one post at most.
pub const LABELS: usize = 32;
/// Bytes of a label's name, and of its value, at most.
pub const LABEL_BYTES: usize = 256;

/// The fields of an object; null is as if it were not there.
pub fn fields(body: &[u8], example: &str) -> Result<impl Iterator<Item = (String, Value)>, String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    let Value::Object(fields) = value else {
        return Err(format!("the body is no object: send one such as {example}"));
    };
    Ok(fields.into_iter().filter(|(_, value)| !value.is_null()))
}

/// A whole number.
pub fn number(name: &str, value: &Value) -> Result<u64, String> {
    value.as_u64().ok_or_else(|| format!("{name} takes a whole number from 0, not {value}"))
}

/// A process.
pub fn process(value: &Value) -> Result<Tgid, String> {
    let pid = value.as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    pid.map(Tgid).ok_or_else(|| format!("pid takes the number of a process, not {value}"))
}

/// Labels: bounded, as they are kept.
pub fn labels(value: Value) -> Result<BTreeMap<String, String>, String> {
    let Value::Object(fields) = value else {
        return Err("labels takes an object of texts, such as {\"run\": \"a\"}".to_owned());
    };
    if fields.len() > LABELS {
        return Err(format!("labels takes at most {LABELS} of them, not {}", fields.len()));
    }
    fields.into_iter().map(label).collect()
}

fn label((name, value): (String, Value)) -> Result<(String, String), String> {
    let fits = |text: &str| text.len() <= LABEL_BYTES && !text.contains(char::is_control);
    let limits = format!("at most {LABEL_BYTES} bytes, without control characters");
    if name.is_empty() || !fits(&name) {
        return Err(format!("labels takes names of {limits}"));
    }
    match value {
        Value::String(value) if fits(&value) => Ok((name, value)),
        _ => Err(format!("labels.{name} takes a text of {limits}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let of = |count: usize, bytes: usize| {
            labels((0..count).map(|n| (format!("l{n}"), Value::from("x".repeat(bytes)))).collect::<Value>())
        };
        assert!(of(LABELS, LABEL_BYTES).is_ok());
        assert_eq!(of(LABELS + 1, 1).unwrap_err(), "labels takes at most 32 of them, not 33");
        assert!(of(1, LABEL_BYTES + 1).unwrap_err().starts_with("labels.l0 takes a text of at most 256 bytes"));
    }
}
