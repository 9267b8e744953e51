//! Tables of what is told of an item by name, besides its counters: one line each, with dots for objects in objects. Views
//! and `sort=` use them. An object of which nothing is known is null.

use super::{fields::Number, view::Context};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell<'a> {
    /// A number, known or not.
    Number(Number),
    /// A text; null where there is none.
    Text(Option<&'a str>),
}

/// A value's name, and how it is read.
pub(super) type Named<T> = (&'static str, for<'a> fn(&'a T, &Context) -> Cell<'a>);

/// A table, filled in for one item.
pub(super) struct Cells<'a, T> {
    /// Those of one object stand together.
    table: &'a [Named<T>],
    /// How much of each name stands outside.
    outside: usize,
    item: &'a T,
    context: &'a Context,
}

impl<'a, T> Cells<'a, T> {
    pub(super) const fn new(table: &'a [Named<T>], item: &'a T, context: &'a Context) -> Self {
        Self { table, outside: 0, item, context }
    }

    fn is_known(&self) -> bool {
        self.table.iter().any(|(_, read)| read(self.item, self.context).is_known())
    }
}

impl Cell<'_> {
    fn is_known(&self) -> bool {
        !matches!(self, Self::Number(Number::Missing) | Self::Text(None))
    }
}

impl<T> Serialize for Cells<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let &Self { mut table, outside, item, context } = self;
        let mut map = serializer.serialize_map(None)?;
        while let Some(((name, read), rest)) = table.split_first() {
            let Some((object, _)) = name[outside..].split_once('.') else {
                map.serialize_entry(&name[outside..], &read(item, context))?;
                table = rest;
                continue;
            };
            let begins = &name[..outside + object.len() + 1];
            let count = table.iter().take_while(|(name, _)| name.starts_with(begins)).count();
            let inner = Cells { table: &table[..count], outside: begins.len(), item, context };
            map.serialize_entry(object, &inner.is_known().then_some(inner))?;
            table = &table[count..];
        }
        map.end()
    }
}

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => text.serialize(serializer),
        }
    }
}

impl<N: Into<Number>> From<N> for Cell<'_> {
    fn from(number: N) -> Self {
        Self::Number(number.into())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};

    #[test]
    fn dots_make_objects_and_what_is_not_known_is_null() {
        let table: [Named<Option<u64>>; 5] = [
            ("a", |_, _| Number::Count(1).into()),
            ("b.c", |item, _| Number::from(*item).into()),
            ("b.d.e", |_, _| Cell::Text(Some("x"))),
            ("b.d.f", |item, _| Number::from(*item).into()),
            ("g.h", |item, _| Number::from(*item).into()),
        ];
        let context = Context::of(&fixtures::snapshot());
        let json = |item| serde_json::to_string(&Cells::new(&table, &item, &context)).unwrap();
        assert_eq!(json(Some(2)), r#"{"a":1,"b":{"c":2,"d":{"e":"x","f":2}},"g":{"h":2}}"#);
        assert_eq!(json(None), r#"{"a":1,"b":{"c":null,"d":{"e":"x","f":null}},"g":null}"#);
    }
}
