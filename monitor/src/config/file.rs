//! Reads a TOML file into assignments, each with the line it stands in.

use super::{Assignment, Config, Error, Key, Origin};
use std::{ops::Range, path::Path};
use toml::de::{DeTable, DeValue};

/// The assignments of a file, in its order. Names and kinds of values are checked, values are not.
pub(super) fn read(path: &Path, keys: &[Key]) -> Result<Vec<Assignment>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, path, keys)
}

fn parse(text: &str, path: &Path, keys: &[Key]) -> Result<Vec<Assignment>, Error> {
    let document = DeTable::parse(text).map_err(|error| Error::Syntax {
        path: path.to_owned(),
        line: line(text, &error.span().unwrap_or_default()),
        message: error.message().replace('\n', ", "),
    })?;
    let mut reader = Reader { text, path, keys, assignments: Vec::new() };
    reader.table(document.get_ref(), None)?;
    Ok(reader.assignments)
}

struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
    keys: &'a [Key],
    assignments: Vec<Assignment>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, section: Option<&str>) -> Result<(), Error> {
        for (name, value) in table {
            let name_path = section.map_or_else(|| name.get_ref().to_string(), |s| format!("{s}.{}", name.get_ref()));
            let origin = Origin::File { path: self.path.to_owned(), line: line(self.text, &name.span()) };
            match value.get_ref() {
                DeValue::Table(inner) if self.is_section(&name_path) => self.table(inner, Some(&name_path))?,
                value => self.assign(name_path, value, origin)?,
            }
        }
        Ok(())
    }

    fn is_section(&self, name: &str) -> bool {
        let is_in =
            |section: &str| section.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.keys.iter().filter_map(|key| key.section).any(is_in)
    }

    fn assign(&mut self, path: String, value: &DeValue<'_>, origin: Origin) -> Result<(), Error> {
        let Some(key) = self.keys.iter().find(|key| key.path() == path) else {
            return Err(super::layers::unknown(self.keys, origin, &path, |key| key.path()));
        };
        let mut defaults = Config::default();
        let slot = key.slot(&mut defaults);
        let text = match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(number) if slot.takes_integer() && number.radix() == 10 => {
                Some(number.as_str().replace('_', ""))
            }
            DeValue::Float(number) if slot.takes_fraction() => Some(number.as_str().replace('_', "")),
            DeValue::Boolean(boolean) if slot.takes_boolean() => Some(boolean.to_string()),
            _ => None,
        };
        match text {
            Some(value) => self.assignments.push(Assignment { path, value, origin }),
            None => return Err(Error::Value { origin, key: path, value: describe(value), allowed: slot.allowed() }),
        }
        Ok(())
    }
}

/// A value of the wrong kind, as it may stand in a message.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "[…]".to_owned(),
        DeValue::Table(_) => "{…}".to_owned(),
        DeValue::String(text) => text.to_string(),
    }
}

/// The line, from 1, in which a span begins.
fn line(text: &str, span: &Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|&byte| byte == b'\n').count()
}
