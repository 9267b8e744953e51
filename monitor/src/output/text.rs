//! Text from outside made fit for a terminal: process names are chosen by whoever runs the process.

/// Replaces what would move the cursor or change the direction of reading, and cuts to at most `width` columns.
pub(crate) fn fit(text: &str, width: usize) -> String {
    let clean = harmless(text);
    if columns(&clean) <= width {
        return clean;
    }
    let mut left = width.saturating_sub(1);
    let mut cut: String = clean
        .chars()
        .take_while(|&letter| {
            let fits = columns_of(letter) <= left;
            left = left.saturating_sub(columns_of(letter));
            fits
        })
        .collect();
    if width > 0 {
        cut.push('…');
    }
    cut
}

/// The columns a text takes at most.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// From the scripts of East Asia on, letters may take two columns; counting all of them so never overruns a line.
const fn columns_of(letter: char) -> usize {
    if (letter as u32) < 0x1100 || matches!(letter, '\u{2010}'..='\u{2027}' | '\u{2190}'..='\u{21ff}') { 1 } else { 2 }
}

/// Replaces what would move the cursor or change the direction of reading.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(harmless_letter).collect()
}

fn harmless_letter(letter: char) -> char {
    match letter {
        // Controls of direction and of width, and the byte-order mark.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => '?',
        _ if letter.is_control() => '?',
        _ => letter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(fit("python3 train.py", 20), "python3 train.py");
        assert_eq!(fit("python3 train.py", 10), "python3 t…");
        assert_eq!(fit("日本語", 4), "日…");
        assert_eq!(fit("abc", 1), "…");
        assert_eq!(fit("abc", 0), "");
    }

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(fit("a\x1b[2J\u{9b}b\n\u{202e}c", 40), "a?[2J?b??c");
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_asked(text: String, width in 0usize..80) {
            let fitted = fit(&text, width);
            prop_assert!(columns(&fitted) <= width);
            prop_assert!(!fitted.chars().any(char::is_control));
        }
    }
}
