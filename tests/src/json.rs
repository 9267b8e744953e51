//! Looking into answers, by dotted names, with errors that name what is missing.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The value at a dotted name, such as `page_faults.user_total`.
///
/// # Errors
/// No such name; the error shows what is there instead.
pub fn at<'a>(value: &'a Value, name: &str) -> Result<&'a Value> {
    name.split('.')
        .try_fold(value, |inner, part| inner.get(part).with_context(|| format!("no {name} (at {part}) in {inner}")))
}

/// The counter at a dotted name.
///
/// # Errors
/// As [`at`], or null: nothing was counted, which is not the same as zero.
pub fn count(value: &Value, name: &str) -> Result<u64> {
    let found = at(value, name)?;
    found.as_u64().with_context(|| format!("{name} is {found}, not a count"))
}

/// The number at a dotted name.
///
/// # Errors
/// As [`at`], or not a number.
pub fn number(value: &Value, name: &str) -> Result<f64> {
    let found = at(value, name)?;
    found.as_f64().with_context(|| format!("{name} is {found}, not a number"))
}

/// The text at a dotted name.
///
/// # Errors
/// As [`at`], or not a string.
pub fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    let found = at(value, name)?;
    found.as_str().with_context(|| format!("{name} is {found}, not a text"))
}

/// The list at a dotted name.
///
/// # Errors
/// As [`at`], or not a list.
pub fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    let found = at(value, name)?;
    found.as_array().with_context(|| format!("{name} is {found}, not a list"))
}

/// By how much a counter grew from one answer to the next.
///
/// # Errors
/// As [`count`], or it fell: totals never do.
pub fn grown(before: &Value, after: &Value, name: &str) -> Result<u64> {
    let (earlier, later) = (count(before, name)?, count(after, name)?);
    match later.checked_sub(earlier) {
        Some(growth) => Ok(growth),
        None => bail!("{name} fell from {earlier} to {later}"),
    }
}

/// Names of all counters in `earlier` that are smaller in `later`, with both values: there should be none.
pub fn fallen(earlier: &Value, later: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect_fallen(earlier, later, "", &mut found);
    found
}

fn collect_fallen(earlier: &Value, later: &Value, name: &str, found: &mut Vec<String>) {
    if let Value::Object(fields) = earlier {
        for (key, value) in fields {
            collect_fallen(value, &later[key], &format!("{name}.{key}"), found);
        }
    } else if name.ends_with("_total") && later.as_f64() < earlier.as_f64() {
        found.push(format!("{name} fell from {earlier} to {later}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_lead_to_values() {
        let value = json!({"a": {"b_total": 7, "c": null, "d": [1]}});
        assert_eq!(count(&value, "a.b_total").unwrap(), 7);
        assert_eq!(list(&value, "a.d").unwrap().len(), 1);
        assert!(count(&value, "a.c").is_err());
        assert!(at(&value, "a.x").unwrap_err().to_string().contains("a.x"));
    }

    #[test]
    fn growth_is_a_difference_and_a_fall_an_error() {
        let (few, many) = (json!({"n_total": 2}), json!({"n_total": 5}));
        assert_eq!(grown(&few, &many, "n_total").unwrap(), 3);
        assert!(grown(&many, &few, "n_total").is_err());
    }

    #[test]
    fn a_counter_that_fell_or_vanished_is_found() {
        let earlier = json!({"pid": 9, "x": {"a_total": 3, "b_total": 3}});
        assert!(fallen(&earlier, &json!({"pid": 1, "x": {"a_total": 3, "b_total": 4}})).is_empty());
        assert_eq!(fallen(&earlier, &json!({"pid": 9, "x": {"a_total": 2, "b_total": 3}})).len(), 1);
        assert_eq!(fallen(&earlier, &json!({"pid": 9, "x": {"a_total": 3, "b_total": null}})).len(), 1);
    }
}
