//! Pressure-stall information, of the host and of cgroups: one file format.

use crate::reading::{Pressure, Stall};
use std::io;

/// Parses a file such as /proc/pressure/memory. None where it is not such a file.
pub(super) fn parse(text: &str) -> Option<Pressure> {
    let line = |kind: &str| text.lines().find_map(|line| stall(line.strip_prefix(kind)?.strip_prefix(' ')?));
    Some(Pressure { some: line("some")?, full: line("full") })
}

/// What a read says: the file may be there and pressure not be accounted (booted with `psi=0`: EOPNOTSUPP).
pub(super) fn of(read: io::Result<&str>) -> Option<Pressure> {
    read.ok().and_then(parse)
}

fn stall(line: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    for field in line.split_whitespace() {
        let (name, value) = field.split_once('=')?;
        let ratio = || value.parse::<f64>().ok().map(|percent| percent / 100.0);
        match name {
            "avg10" => stall.avg10_ratio = ratio()?,
            "avg60" => stall.avg60_ratio = ratio()?,
            "avg300" => stall.avg300_ratio = ratio()?,
            "total" => stall.total_us = value.parse().ok()?,
            _ => {}
        }
    }
    Some(stall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read_and_the_second_may_be_missing() {
        let text =
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=1906\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = parse(text).unwrap();
        assert_eq!(pressure.some, Stall { avg10_ratio: 0.015, avg60_ratio: 0.0025, avg300_ratio: 0.0, total_us: 1906 });
        assert_eq!(pressure.full.unwrap().total_us, 7);
        assert_eq!(parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").unwrap().full, None);
        assert_eq!(parse(""), None);
        assert_eq!(of(Err(io::ErrorKind::Unsupported.into())), None);
    }
}
