//! The forms of the files that each cgroup has, by the names of cgroup v2 and v1.

use super::files::{Buffer, each_pair, number};
use crate::reading::{IoReading, MemoryEvents, MemoryReading};
use std::path::Path;

/// The number after a name at the beginning of a line.
pub(super) fn first_value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".
pub(super) fn read_v2(directory: &Path, memory: &mut MemoryReading, buffer: &mut Buffer) -> Option<()> {
    let text = buffer.read(&directory.join("memory.stat")).ok()?;
    each_pair(text, |name, value| match name {
        "anon" => memory.anon_bytes = Some(value),
        "file" => memory.file_bytes = Some(value),
        "inactive_file" => memory.inactive_file_bytes = Some(value),
        // Since Linux 5.18.
        "kernel" => memory.kernel_bytes = Some(value),
        "slab" => memory.slab_bytes = Some(value),
        "pgmajfault" => memory.major_faults = Some(value),
        _ => {}
    });
    // "max" is no number, and no limit.
    memory.limit_bytes = number(buffer.read(&directory.join("memory.max")));
    memory.peak_bytes = number(buffer.read(&directory.join("memory.peak")));
    memory.swap_bytes = number(buffer.read(&directory.join("memory.swap.current")));
    if let Ok(text) = buffer.read(&directory.join("memory.events")) {
        let events = &mut memory.events;
        each_pair(text, |name, value| match name {
            "low" => events.low = Some(value),
            "high" => events.high = Some(value),
            "max" => events.max = Some(value),
            "oom" => events.oom = Some(value),
            "oom_kill" => events.oom_kill = Some(value),
            _ => {}
        });
    }
    Some(())
}

/// Documentation/admin-guide/cgroup-v1/memory.rst. The names that begin with `total_` include everything below.
pub(super) fn read_v1(directory: &Path, memory: &mut MemoryReading, buffer: &mut Buffer) -> Option<()> {
    /// What stands for no limit: the largest number of pages, in bytes.
    const UNLIMITED: u64 = (i64::MAX as u64) & !4095;
    let text = buffer.read(&directory.join("memory.stat")).ok()?;
    each_pair(text, |name, value| match name {
        "total_rss" => memory.anon_bytes = Some(value),
        "total_cache" => memory.file_bytes = Some(value),
        "total_inactive_file" => memory.inactive_file_bytes = Some(value),
        "total_swap" => memory.swap_bytes = Some(value),
        "total_pgmajfault" => memory.major_faults = Some(value),
        _ => {}
    });
    let mut read = |name: &str| number(buffer.read(&directory.join(name)));
    memory.limit_bytes = read("memory.limit_in_bytes").filter(|&limit| limit < UNLIMITED);
    memory.peak_bytes = read("memory.max_usage_in_bytes");
    memory.kernel_bytes = read("memory.kmem.usage_in_bytes");
    memory.events = MemoryEvents { max: read("memory.failcnt"), ..MemoryEvents::default() };
    if let Ok(text) = buffer.read(&directory.join("memory.oom_control")) {
        // Since Linux 4.13; of this cgroup alone.
        memory.events.oom_kill = first_value(text, "oom_kill ");
    }
    Some(())
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, a line for each device.
pub(super) fn parse_io_stat(text: &str) -> Vec<IoReading> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut io = IoReading { device: fields.next()?.to_owned(), ..IoReading::default() };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.read_ops = value,
                "wios" => io.write_ops = value,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(line).collect()
}

/// `8:0 Read 1`, a line for each device and kind.
pub(super) fn parse_blkio(text: &str, is_bytes: bool, all: &mut Vec<IoReading>) {
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let (Some(device), Some(kind), Some(value)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let Ok(value) = value.parse() else { continue };
        let place = all.iter().position(|io: &IoReading| io.device == device).unwrap_or_else(|| {
            all.push(IoReading { device: device.to_owned(), ..IoReading::default() });
            all.len() - 1
        });
        match (kind, is_bytes) {
            ("Read", true) => all[place].read_bytes = value,
            ("Write", true) => all[place].write_bytes = value,
            ("Read", false) => all[place].read_ops = value,
            ("Write", false) => all[place].write_ops = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_of_either_version_is_told_by_device() {
        let v2 = parse_io_stat("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:1 \n");
        assert_eq!(v2[0], IoReading { device: "8:0".into(), read_bytes: 1, write_bytes: 2, read_ops: 3, write_ops: 4 });
        assert_eq!(v2[1], IoReading { device: "7:1".into(), ..IoReading::default() });
        let mut v1 = Vec::new();
        parse_blkio("8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\nTotal 3\n", true, &mut v1);
        parse_blkio("8:0 Read 3\n8:0 Write 4\nTotal 7\n", false, &mut v1);
        assert_eq!(v1, v2[..1]);
    }
}
