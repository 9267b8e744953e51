//! Patterns of text, as people write them in settings.

/// Whether all of a text fits a pattern, in which `*` is any text and `?` any letter.
pub fn fits(mut text: &str, mut pattern: &str) -> bool {
    // What was left of both behind the last star: should the rest not fit, the star takes one letter more.
    let mut star = None;
    loop {
        let (mut letters, mut marks) = (text.chars(), pattern.chars());
        match (marks.next(), letters.next()) {
            (Some('*'), _) => {
                pattern = marks.as_str();
                star = Some((text, pattern));
            }
            (Some(mark), Some(letter)) if mark == '?' || mark == letter => {
                (text, pattern) = (letters.as_str(), marks.as_str());
            }
            (None, None) => return true,
            _ => {
                let Some((rest, behind)) = star else { return false };
                let mut letters = rest.chars();
                if letters.next().is_none() {
                    return false;
                }
                (text, pattern) = (letters.as_str(), behind);
                star = Some((text, pattern));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn a_text_fits_patterns_made_of_it(text: String, cut in 0usize..20) {
            let plain = text.replace(['*', '?'], "");
            let cut = plain.char_indices().nth(cut).map_or(plain.len(), |(at, _)| at);
            let (begin, end) = plain.split_at(cut);
            let letters = "?".repeat(plain.chars().count());
            for pattern in [format!("{begin}*{end}"), format!("*{end}"), format!("{begin}*"), letters.clone()] {
                proptest::prop_assert!(super::fits(&plain, &pattern), "{}", pattern);
            }
            proptest::prop_assert!(!super::fits(&plain, &(letters + "?")));
        }
    }
}
