//! Texts that live as long as the program: names out of its own tables, and those that a recording tells of others'.

use serde::{Deserialize, Deserializer, de::Error};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// A name out of a table. An alias, because serde takes a field that says `&'static str` for one that borrows from its input.
pub type Name = &'static str;
/// Several of them.
pub type Names = &'static [&'static str];

/// Different texts that are kept at most. An agent has some dozens of them.
const MOST: usize = 4096;
/// Names in one list at most.
const LONGEST: usize = 64;

/// For `#[serde(deserialize_with)]`: a name.
pub fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    kept(String::deserialize(deserializer)?).ok_or_else(too_many)
}

/// For `#[serde(deserialize_with)]`: a name, where there is one.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| kept(text).ok_or_else(too_many)).transpose()
}

/// For `#[serde(deserialize_with)]`: names of an owned list, where there is one.
pub fn optional_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Name>>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(deserializer)?;
    texts.map(|texts| texts.into_iter().map(kept).collect::<Option<_>>().ok_or_else(too_many)).transpose()
}

/// For `#[serde(deserialize_with)]`: a list of names.
pub fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Names, D::Error> {
    static KEPT: Mutex<Option<HashSet<Names>>> = Mutex::new(None);
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.len() > LONGEST {
        return Err(too_many());
    }
    let list: Vec<Name> = texts.into_iter().map(kept).collect::<Option<_>>().ok_or_else(too_many)?;
    let mut lists = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let lists = lists.get_or_insert_default();
    if let Some(list) = lists.get(&*list) {
        return Ok(list);
    }
    if lists.len() >= MOST {
        return Err(too_many());
    }
    let list: Names = list.leak();
    lists.insert(list);
    Ok(list)
}

/// The one copy of a text; none where there are too many of them already.
fn kept(text: String) -> Option<Name> {
    static KEPT: Mutex<Option<HashSet<Name>>> = Mutex::new(None);
    let mut texts = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let texts = texts.get_or_insert_default();
    if let Some(text) = texts.get(&*text) {
        return Some(text);
    }
    (texts.len() < MOST).then(|| {
        let text: Name = text.leak();
        texts.insert(text);
        text
    })
}

fn too_many<E: Error>() -> E {
    E::custom("more names than any agent has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once() {
        let (first, second) = (kept("tp_btf".to_owned()).unwrap(), kept("tp_btf".to_owned()).unwrap());
        assert!(std::ptr::eq(first, second));
        let list = || names(&mut serde_json::Deserializer::from_str(r#"["a","b"]"#)).unwrap();
        assert!(std::ptr::eq(list(), list()));
        assert_eq!(list(), ["a", "b"]);
    }
}
