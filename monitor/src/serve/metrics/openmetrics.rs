//! The text of metrics: OpenMetrics 1.0 (<https://github.com/prometheus/OpenMetrics>, specification/OpenMetrics.md), or
//! Prometheus' own text format 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>) for readers that
//! accept only that. Written here, as a scrape is told in one pass and keeps nothing between two of them.

use super::super::fields::Number;
use std::fmt::{self, Write as _};

/// Units that names may end in; OpenMetrics tells them apart.
const UNITS: [&str; 6] = ["bytes", "seconds", "ratio", "celsius", "watts", "hertz"];

/// Which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Format {
    /// OpenMetrics.
    OpenMetrics,
    /// Prometheus' text format.
    Text,
}

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// They only grow; each sample's name ends in `_total`.
    Counter,
    /// They go up and down.
    Gauge,
    /// Each is 1, and its labels are what is told; its name ends in `_info`.
    Info,
}

/// A label's name and value.
pub(super) type Label<'a> = (&'static str, &'a str);

/// A text of metrics in the making.
#[derive(Debug)]
pub(super) struct Exposition {
    format: Format,
    text: String,
}

/// A family of metrics: its head stands before its first sample, and nowhere where it has none.
pub(super) struct Family<'a> {
    to: &'a mut Exposition,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    has_samples: bool,
}

impl Format {
    /// The format for a reader that sends this `Accept` header.
    pub(in super::super) fn accepted(accept: Option<&str>) -> Self {
        let accepts = |kind| accept.is_some_and(|accept| accept.contains(kind));
        if accepts("text/plain") && !accepts("application/openmetrics-text") { Self::Text } else { Self::OpenMetrics }
    }

    /// Its media type.
    pub(in super::super) const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Kind {
    /// What the names of samples end in.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Gauge => "",
            Self::Info => "_info",
        }
    }

    const fn name(self, format: Format) -> &'static str {
        match (self, format) {
            (Self::Counter, _) => "counter",
            (Self::Info, Format::OpenMetrics) => "info",
            (Self::Gauge, _) | (Self::Info, Format::Text) => "gauge",
        }
    }
}

impl Exposition {
    pub(super) const fn new(format: Format) -> Self {
        Self { format, text: String::new() }
    }

    /// Begins a family. `name` is without the suffix of its kind; all of a family's samples are to be added at once.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        Family { to: self, name, kind, help, has_samples: false }
    }

    /// A gauge with one sample.
    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str, value: impl Into<Number>) {
        self.family(name, Kind::Gauge, help).add(&[], value);
    }

    /// A counter with one sample.
    pub(super) fn counter(&mut self, name: &'static str, help: &'static str, value: impl Into<Number>) {
        self.family(name, Kind::Counter, help).add(&[], value);
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl Family<'_> {
    /// Adds a sample; nothing where the value is not known. Labels without a value are left out, which means the same.
    pub(super) fn add(&mut self, labels: &[Label<'_>], value: impl Into<Number>) {
        let value = value.into();
        if matches!(value, Number::Missing) {
            return;
        }
        if !self.has_samples {
            self.has_samples = true;
            self.head();
        }
        let text = &mut self.to.text;
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}{}{} {}", self.name, self.kind.suffix(), Labels(labels), Value(value));
    }

    /// Adds what is told by labels alone.
    pub(super) fn tell(&mut self, labels: &[Label<'_>]) {
        self.add(labels, Number::Count(1));
    }

    fn head(&mut self) {
        let Self { to: Exposition { format, text }, name, kind, help, .. } = self;
        // The text format names samples, OpenMetrics what they belong to.
        let suffix = if *format == Format::Text { kind.suffix() } else { "" };
        let _ = writeln!(text, "# HELP {name}{suffix} {help}");
        let _ = writeln!(text, "# TYPE {name}{suffix} {}", kind.name(*format));
        let unit = UNITS.iter().find(|unit| name.strip_suffix(*unit).is_some_and(|rest| rest.ends_with('_')));
        if let (Some(unit), Format::OpenMetrics) = (unit, *format) {
            let _ = writeln!(text, "# UNIT {name} {unit}");
        }
    }
}

struct Labels<'a>(&'a [Label<'a>]);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = '{';
        for (name, value) in self.0.iter().filter(|(_, value)| !value.is_empty()) {
            write!(f, "{before}{name}=\"{}\"", Escaped(value))?;
            before = ',';
        }
        if before == ',' { f.write_char('}') } else { Ok(()) }
    }
}

/// A label's value: backslash, quote and line feed are escaped, everything else stands as it is.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

struct Value(Number);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Number::Missing => f.write_str("NaN"),
            Number::Count(value) => write!(f, "{value}"),
            Number::Real(value) | Number::Rate(value) => write!(f, "{value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::parse, *};
    use proptest::prelude::*;

    fn exposition(format: Format) -> String {
        let mut to = Exposition::new(format);
        to.counter("x_seconds", "Time.", Number::Real(1.5));
        let mut names = to.family("y", Kind::Info, "Names.");
        names.tell(&[("name", "a \"b\"\nc\\ü"), ("none", "")]);
        to.gauge("z", "Nothing known.", Number::Missing);
        to.finish()
    }

    #[test]
    fn openmetrics_names_families_and_ends() {
        assert_eq!(
            exposition(Format::OpenMetrics),
            "# HELP x_seconds Time.\n# TYPE x_seconds counter\n# UNIT x_seconds seconds\nx_seconds_total 1.5\n\
             # HELP y Names.\n# TYPE y info\ny_info{name=\"a \\\"b\\\"\\nc\\\\ü\"} 1\n# EOF\n"
        );
    }

    #[test]
    fn the_text_format_names_samples() {
        assert_eq!(
            exposition(Format::Text),
            "# HELP x_seconds_total Time.\n# TYPE x_seconds_total counter\nx_seconds_total 1.5\n\
             # HELP y_info Names.\n# TYPE y_info gauge\ny_info{name=\"a \\\"b\\\"\\nc\\\\ü\"} 1\n"
        );
    }

    #[test]
    fn a_reader_gets_what_it_accepts() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::OpenMetrics);
        assert_eq!(Format::accepted(None), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("text/plain;version=0.0.4")), Format::Text);
    }

    proptest! {
        #[test]
        fn any_label_comes_back_as_it_was(first in ".+", second in "[\\\\\"\n{},= ü]+", value: u64) {
            let mut to = Exposition::new(Format::OpenMetrics);
            to.family("m", Kind::Gauge, "Any.").add(&[("a", &first), ("b", &second)], Number::Count(value));
            let samples = parse(&to.finish());
            prop_assert_eq!(samples.len(), 1);
            prop_assert_eq!(&samples[0].labels, &[("a".to_owned(), first), ("b".to_owned(), second)]);
            prop_assert_eq!(&samples[0].value, &value.to_string());
        }
    }
}
