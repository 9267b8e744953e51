//! Sizes and durations as people write and read them: "64MiB", "500ms", "12.3k".
//!
//! The `show_…` functions are exact and give back what the `parse_…` functions take; the `human_…` ones round.

use bytesize::ByteSize;
use std::time::Duration;

/// Bytes of a page of x86-64.
pub const PAGE: u64 = 4096;

/// Reads a size in bytes: "64MiB", "64MB" (decimal), "65536".
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("\"{text}\" is not a size"))
}

/// Writes a size exactly, in the largest binary unit that divides it.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value != 0 && value.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value}{}", UNITS[unit])
}

/// Reads a duration: "500ms", "1m 30s". A number alone is refused, as nobody could tell its unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Writes a duration exactly.
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A count in at most five characters: "0", "0.4", "17", "12.3k", "1.0M". For columns.
pub fn human_count(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G", "T", "P", "E"], "")
}

/// A size in bytes with a binary unit: "0 B", "17 B", "12.3 KiB".
pub fn human_bytes(value: f64) -> String {
    scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], " ")
}

/// A duration in whole seconds: "12s", "1m 12s".
pub fn human_duration(duration: Duration) -> String {
    show_duration(Duration::from_secs(duration.as_secs()))
}

/// Seconds in their largest unit of seconds, milliseconds or microseconds: "5.9 s", "12 ms", "0 us".
pub fn human_seconds(seconds: f64) -> String {
    match seconds {
        s if s >= 0.9995 => format!("{s:.1} s"),
        s if s >= 0.000_999_5 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}

/// Divides by `step` until the value is below it; one decimal where that tells something.
fn scaled(value: f64, step: f64, units: &[&str], space: &str) -> String {
    let mut value = value.max(0.0);
    let mut unit = 0;
    // What rounds up to a whole step belongs to the next unit.
    while value >= step - 0.05 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let decimals = usize::from((unit > 0 && value < 999.95) || (0.05..9.95).contains(&value) && value.fract() != 0.0);
    format!("{value:.decimals$}{space}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("64MB"), Ok(64_000_000));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("much"), Err("\"much\" is not a size".to_owned()));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("5").is_err());
    }

    #[test]
    fn sizes_are_shown_in_the_largest_exact_unit() {
        assert_eq!(show_bytes(0), "0B");
        assert_eq!(show_bytes(65536), "64KiB");
        assert_eq!(show_bytes(65537), "65537B");
        assert_eq!(show_bytes(1 << 60), "1048576TiB");
    }

    #[test]
    fn people_read_short_numbers() {
        let counts = [(0.0, "0"), (0.4, "0.4"), (17.0, "17"), (999.0, "999"), (999.97, "1.0k"), (12_345.0, "12.3k")];
        for (value, text) in counts {
            assert_eq!(human_count(value), text);
        }
        assert_eq!(human_count(1e6), "1.0M");
        assert_eq!(human_count(-1.0), "0");
        assert_eq!(human_bytes(0.0), "0 B");
        assert_eq!(human_bytes(1024.0), "1.0 KiB");
        assert_eq!(human_bytes(1010.0 * 1024.0), "1010 KiB");
        assert_eq!(human_duration(Duration::from_millis(72_900)), "1m 12s");
    }

    #[test]
    fn time_is_told_in_a_fitting_unit() {
        assert_eq!(human_seconds(0.0), "0 us");
        assert_eq!(human_seconds(0.000_2), "200 us");
        assert_eq!(human_seconds(0.25), "250 ms");
        assert_eq!(human_seconds(0.9996), "1.0 s");
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes: u64, seconds in 0u64..1 << 40, nanos in 0u32..1_000_000_000) {
            prop_assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes));
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }
    }
}
