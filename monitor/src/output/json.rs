//! Indents JSON as it streams by, in its own order, with some colour.

/// Spaces of one level.
const INDENT: usize = 2;
const RESET: &str = "\x1b[0m";
const NAME: &str = "\x1b[34m";
const TEXT: &str = "\x1b[32m";
const WORD: &str = "\x1b[36m";
const NULL: &str = "\x1b[2m";

/// Rewrites a document piece by piece. It keeps one document's state, so a new document needs a new one.
#[derive(Debug, Default)]
pub struct Pretty {
    colour: bool,
    depth: usize,
    state: State,
    /// Whether the innermost open object or array is still empty.
    empty: bool,
    /// Whether a string that begins now is a field's name, for each open object or array: None in an array.
    names: Vec<Option<bool>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Between,
    Text,
    /// After a backslash in a string.
    Escaped,
    /// In a number, true, false or null.
    Word,
}

impl Pretty {
    /// For one document.
    pub fn new(colour: bool) -> Self {
        Self { colour, ..Self::default() }
    }

    /// Adds a piece, indented, to `out`. Whatever is not JSON comes out in some shape, but does come out.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        for &byte in piece {
            match self.state {
                State::Text | State::Escaped => self.text(byte, out),
                State::Between | State::Word => self.token(byte, out),
            }
        }
    }

    fn text(&mut self, byte: u8, out: &mut Vec<u8>) {
        out.push(byte);
        self.state = match (&self.state, byte) {
            (State::Text, b'\\') => State::Escaped,
            (State::Text, b'"') => {
                self.paint(RESET, out);
                State::Between
            }
            _ => State::Text,
        };
    }

    fn token(&mut self, byte: u8, out: &mut Vec<u8>) {
        let is_word = !matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':' | b'"') && !byte.is_ascii_whitespace();
        if self.state == State::Word && !is_word {
            self.paint(RESET, out);
            self.state = State::Between;
        }
        match byte {
            b'{' | b'[' => self.open(byte, out),
            b'}' | b']' => self.close(byte, out),
            b',' => self.separate(out),
            b':' => {
                self.expect_name(false);
                out.extend_from_slice(b": ");
            }
            b'"' => {
                self.begin_value(out);
                let is_name = self.names.last() == Some(&Some(true));
                self.paint(if is_name { NAME } else { TEXT }, out);
                out.push(byte);
                self.state = State::Text;
            }
            _ if is_word => self.word(byte, out),
            _ => {}
        }
    }

    fn word(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.state == State::Between {
            self.begin_value(out);
            self.paint(if byte == b'n' { NULL } else { WORD }, out);
            self.state = State::Word;
        }
        out.push(byte);
    }

    fn open(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.begin_value(out);
        out.push(byte);
        self.depth += 1;
        self.empty = true;
        self.names.push((byte == b'{').then_some(true));
    }

    fn close(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.depth = self.depth.saturating_sub(1);
        self.names.pop();
        if !self.empty {
            self.new_line(out);
        }
        self.empty = false;
        out.push(byte);
    }

    fn separate(&mut self, out: &mut Vec<u8>) {
        out.push(b',');
        self.expect_name(true);
        self.new_line(out);
    }

    /// In an object, whether the next string is a name.
    fn expect_name(&mut self, is_name: bool) {
        if let Some(Some(expected)) = self.names.last_mut() {
            *expected = is_name;
        }
    }

    /// The first value of an object or array begins a line; the others follow a comma, which did.
    fn begin_value(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.empty) {
            self.new_line(out);
        }
    }

    fn new_line(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
        out.resize(out.len() + INDENT * self.depth, b' ');
    }

    fn paint(&self, code: &str, out: &mut Vec<u8>) {
        if self.colour {
            out.extend_from_slice(code.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn pretty(text: &str, piece: usize, colour: bool) -> String {
        let mut out = Vec::new();
        let mut printer = Pretty::new(colour);
        text.as_bytes().chunks(piece).for_each(|piece| printer.push(piece, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn it_agrees_with_serde_whatever_the_pieces() {
        let value =
            json!({"a": [], "b": {}, "c": [1, -2.5e3, true, null, "x\"\\{[,:"], "d": {"e": {"f": [[1], [{}]]}}});
        let compact = value.to_string();
        for piece in 1..=compact.len() {
            assert_eq!(pretty(&compact, piece, false), serde_json::to_string_pretty(&value).unwrap());
        }
        let spaced = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(pretty(&spaced, 7, false), spaced, "what is indented already stays as it is");
    }

    #[test]
    fn names_texts_and_words_are_coloured() {
        assert_eq!(
            pretty(r#"{"a":"b","c":null,"d":1}"#, 99, true),
            "{\n  \x1b[34m\"a\"\x1b[0m: \x1b[32m\"b\"\x1b[0m,\n  \x1b[34m\"c\"\x1b[0m: \x1b[2mnull\x1b[0m,\n  \x1b[34m\"d\"\x1b[0m: \x1b[36m1\x1b[0m\n}"
        );
    }

    proptest! {
        #[test]
        fn anything_at_all_is_survived(bytes: Vec<u8>) {
            Pretty::new(true).push(&bytes, &mut Vec::new());
        }

        #[test]
        fn every_string_survives(text: String) {
            let value = json!({ text.as_str(): [text.as_str()] });
            prop_assert_eq!(serde_json::from_str::<Value>(&pretty(&value.to_string(), 3, false)).unwrap(), value);
        }
    }
}
