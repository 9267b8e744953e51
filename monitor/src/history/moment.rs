//! Moments of a recording: how people name them, and how segments are named after them.

use super::frame::Head;
use crate::units::parse_duration;
use jiff::{Timestamp, fmt::strtime, tz::TimeZone};
use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

/// Which moment of a recording is asked for. Its answer is the last snapshot that is not later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum At {
    /// The last one.
    #[default]
    End,
    /// So long before the last one.
    BeforeEnd(Duration),
    /// A wall time, in nanoseconds since 1970.
    Time(u64),
}

/// Names of segments: wall time in UTC, whose order is that of the letters.
const NAME: &str = "%Y%m%dT%H%M%S.%3fZ";

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            if text == "end" {
                return Some(Self::End);
            }
            if let Some(before) = text.strip_prefix('-') {
                return parse_duration(before).ok().map(Self::BeforeEnd);
            }
            let time = match text.strip_prefix('@') {
                Some(seconds) => Duration::try_from_secs_f64(seconds.parse().ok()?).ok()?.as_nanos(),
                None => u128::try_from(text.parse::<Timestamp>().ok()?.as_nanosecond()).ok()?,
            };
            u64::try_from(time).ok().map(Self::Time)
        };
        read().ok_or_else(|| {
            "it takes a time such as 2026-11-21T14:30:00Z, 2026-11-21T14:30:00.25+01:00 or @1795271400, or -30s for so \
             long before the end"
                .to_owned()
        })
    }
}

/// The place of the frame that ends with the snapshot asked for; none where all are later.
pub(super) fn find<'a>(at: At, heads: impl Iterator<Item = &'a Head> + Clone) -> Option<usize> {
    let timed = heads.enumerate().filter_map(|(place, head)| Some((place, head.time_ns()?)));
    let (_, end) = timed.clone().last()?;
    let latest = match at {
        At::End => end,
        At::BeforeEnd(before) => end.saturating_sub(u64::try_from(before.as_nanos()).unwrap_or(u64::MAX)),
        At::Time(time) => time,
    };
    timed.filter(|(_, time)| *time <= latest).last().map(|(place, _)| place)
}

/// A wall time for people, to the millisecond.
pub(super) fn show(time_ns: u64) -> String {
    let time = Timestamp::from_nanosecond(time_ns.into()).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}

/// The name of a segment that begins at a wall time.
pub(super) fn name(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    strtime::format(NAME, time).unwrap_or_else(|_| time.to_string())
}

/// When the segment of a name begins; none for other names.
pub(super) fn parse_name(name: &str) -> Option<SystemTime> {
    let time = strtime::parse(NAME, name).ok()?.to_datetime().ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_each_of_their_forms() {
        let second = 1_000_000_000;
        let cases = [
            ("end", At::End),
            ("-30s", At::BeforeEnd(Duration::from_secs(30))),
            ("-1m 30s", At::BeforeEnd(Duration::from_secs(90))),
            ("@1795271400.5", At::Time(1_795_271_400 * second + second / 2)),
            ("1970-01-01T00:00:02.5Z", At::Time(2 * second + second / 2)),
            ("1970-01-01T02:00:01+02:00", At::Time(second)),
        ];
        for (text, at) in cases {
            assert_eq!(text.parse(), Ok(at), "{text}");
        }
        for text in ["", "yesterday", "30s", "-30", "1969-01-01T00:00:00Z", "2026-11-21", "@-1", "@inf"] {
            assert!(text.parse::<At>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_in_order_and_read_back() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_271_400_007);
        assert_eq!(name(time), "20261121T143000.007Z");
        assert_eq!(parse_name(&name(time)), Some(time));
        assert_eq!(parse_name("notes"), None);
        assert_eq!(show(1_795_271_400_007_000_000), "2026-11-21T14:30:00.007Z");
    }
}
