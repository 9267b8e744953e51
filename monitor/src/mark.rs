//! Marks: what a training loop tells of where it is, so that numbers can be laid beside steps and epochs.
//!
//! Everything of a mark is bounded, as it travels with every snapshot after it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Labels of a mark at most.
pub const LABELS: usize = 32;
/// Bytes of a label's name, and of its value, at most.
pub const LABEL_BYTES: usize = 256;

/// Where a training loop is. In what was posted, none leaves a part as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// Its step, or batch.
    pub step: Option<u64>,
    /// Its epoch.
    pub epoch: Option<u64>,
    /// Whatever else it tells.
    pub labels: Option<BTreeMap<String, String>>,
}

impl Mark {
    /// From a JSON object with at least one of `step`, `epoch` and `labels`; null is as if it were not there.
    ///
    /// # Errors
    /// One sentence that names the field at fault and what it takes.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
        let Value::Object(fields) = value else {
            return Err("the body is no object: send one such as {\"step\": 10, \"epoch\": 1}".to_owned());
        };
        let mut mark = Self::default();
        for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
            match name.as_str() {
                "step" => mark.step = Some(number(&name, &value)?),
                "epoch" => mark.epoch = Some(number(&name, &value)?),
                "labels" => mark.labels = Some(labels(value)?),
                _ => return Err(format!("there is no field {name:?}: a mark has step, epoch and labels")),
            }
        }
        if mark == Self::default() { Err("the mark is empty: give step, epoch or labels".to_owned()) } else { Ok(mark) }
    }

    /// This mark, with what it leaves out as it was.
    #[must_use]
    pub fn after(&self, before: Option<&Self>) -> Self {
        let before = before.cloned().unwrap_or_default();
        Self {
            step: self.step.or(before.step),
            epoch: self.epoch.or(before.epoch),
            labels: self.labels.clone().or(before.labels),
        }
    }
}

fn number(name: &str, value: &Value) -> Result<u64, String> {
    value.as_u64().ok_or_else(|| format!("{name} takes a whole number from 0, not {value}"))
}

fn labels(value: Value) -> Result<BTreeMap<String, String>, String> {
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
    use proptest::prelude::*;

    fn refusal(body: &str) -> String {
        Mark::parse(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_mark_is_read_whole_or_in_part() {
        let whole = Mark::parse(br#"{"step": 7, "epoch": 2, "labels": {"run": "a"}}"#).unwrap();
        let labels = Some([("run".to_owned(), "a".to_owned())].into());
        assert_eq!(whole, Mark { step: Some(7), epoch: Some(2), labels });
        let step = Mark::parse(br#"{"step": 8, "epoch": null}"#).unwrap();
        assert_eq!(step, Mark { step: Some(8), ..Mark::default() });
        assert_eq!(step.after(Some(&whole)), Mark { step: Some(8), ..whole.clone() });
        assert_eq!(step.after(None), step);
    }

    #[test]
    fn refusals_name_the_field() {
        assert!(refusal("{").starts_with("the body is not JSON: "));
        assert!(refusal("[1]").starts_with("the body is no object"));
        assert!(refusal("{}").starts_with("the mark is empty"));
        assert_eq!(refusal(r#"{"step": -1}"#), "step takes a whole number from 0, not -1");
        assert_eq!(refusal(r#"{"epoch": "2"}"#), "epoch takes a whole number from 0, not \"2\"");
        assert_eq!(refusal(r#"{"loss": 0.5}"#), "there is no field \"loss\": a mark has step, epoch and labels");
        assert!(refusal(r#"{"labels": ["a"]}"#).starts_with("labels takes an object"));
        assert!(refusal(r#"{"labels": {"loss": 1}}"#).starts_with("labels.loss takes a text"));
        assert!(refusal(r#"{"labels": {"a": "b\nc"}}"#).starts_with("labels.a takes a text"));
        assert!(refusal(r#"{"labels": {"": "b"}}"#).starts_with("labels takes names"));
    }

    #[test]
    fn labels_are_bounded() {
        let labels = |count: usize, bytes: usize| {
            let labels: BTreeMap<_, _> = (0..count).map(|n| (format!("l{n}"), "x".repeat(bytes))).collect();
            Mark::parse(&serde_json::to_vec(&serde_json::json!({ "labels": labels })).unwrap())
        };
        assert!(labels(LABELS, LABEL_BYTES).is_ok());
        assert_eq!(labels(LABELS + 1, 1).unwrap_err(), "labels takes at most 32 of them, not 33");
        assert!(labels(1, LABEL_BYTES + 1).unwrap_err().starts_with("labels.l0 takes a text of at most 256 bytes"));
    }

    proptest! {
        #[test]
        fn no_body_is_a_panic(body: Vec<u8>) {
            let _ = Mark::parse(&body);
        }
    }
}
