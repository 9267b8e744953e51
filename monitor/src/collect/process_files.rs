//! The forms of the files that /proc has of each process, and how many files it has open.

use super::{descriptors, files::each_pair};
use crate::{
    ids::TICK_NS,
    reading::{ProcessReading, Resident, Shares, Storage},
    units::PAGE,
};
use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::LazyLock};

/// What of /proc/PID/stat is not for others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// When it started, in clock ticks since boot: a pid that is used again has another.
    pub(super) start_tick: u64,
    /// As the kernel counts it: near enough to tell a change by.
    pub(super) resident_bytes: u64,
}

/// proc_pid_stat(5). Names may hold spaces and brackets, so fields are counted from the last bracket.
pub(super) fn parse_stat(text: &str) -> Option<(Identity, ProcessReading)> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
    let reading = ProcessReading {
        cpu_ns: Some((field(14)? + field(15)?) * TICK_NS),
        threads: field(20)? as u32,
        minor_faults: field(10)?,
        major_faults: field(12)?,
        // Without delay accounting it stays zero, and nobody can tell that from no delay.
        io_delay_ns: field(42).filter(|&ticks| ticks > 0).map(|ticks| ticks * TICK_NS),
        ..ProcessReading::default()
    };
    Some((Identity { start_tick: field(22)?, resident_bytes: field(24)? * PAGE }, reading))
}

/// proc_pid_status(5); kernel threads have no such lines.
pub(super) fn parse_status(text: &str) -> Option<Resident> {
    let (mut resident, mut has_memory) = (Resident::default(), false);
    for line in text.lines() {
        let Some((name, value)) = line.trim_end_matches(" kB").split_once(':') else { continue };
        let place = match name {
            "RssAnon" => &mut resident.anon_bytes,
            "RssFile" => &mut resident.file_bytes,
            "RssShmem" => &mut resident.shmem_bytes,
            "VmSwap" => &mut resident.swap_bytes,
            _ => continue,
        };
        *place = value.trim().parse::<u64>().ok()? * 1024;
        has_memory = true;
    }
    has_memory.then_some(resident)
}

pub(super) fn parse_io(text: &str) -> Storage {
    let mut storage = Storage::default();
    each_pair(text, |name, value| match name {
        "read_bytes:" => storage.read_bytes = value,
        "write_bytes:" => storage.write_bytes = value,
        _ => {}
    });
    storage
}

pub(super) fn parse_shares(text: &str) -> Shares {
    let mut shares = Shares::default();
    for line in text.lines() {
        each_pair(line.trim_end_matches(" kB"), |name, kib| match name {
            "Pss:" => shares.proportional_bytes = kib * 1024,
            "Private_Clean:" | "Private_Dirty:" | "Private_Hugetlb:" => shares.unique_bytes += kib * 1024,
            _ => {}
        });
    }
    shares
}

/// More files than these are not counted one by one.
const COUNTED_MAX: usize = 4096;

/// How many files are open: the size of the directory tells since Linux 6.2. Before, they are counted, but for those of who has
/// very many.
pub(super) fn open_files(directory: &Path) -> Option<u32> {
    static SIZE_TELLS: LazyLock<bool> =
        LazyLock::new(|| fs::metadata("/proc/self/fd").is_ok_and(|metadata| metadata.size() > 0));
    if *SIZE_TELLS {
        return fs::metadata(directory).ok().map(|metadata| metadata.size() as u32);
    }
    count_files(directory)
}

fn count_files(directory: &Path) -> Option<u32> {
    let entries = fs::read_dir(directory).inspect_err(descriptors::note).ok()?;
    let count = entries.take(COUNTED_MAX + 1).filter(Result::is_ok).count();
    u32::try_from(count).ok().filter(|_| count <= COUNTED_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    #[test]
    fn files_are_as_many_counted_one_by_one_as_the_directory_says() {
        let mut child =
            Command::new("sh").args(["-c", "exec 7</dev/null 8</dev/null; read line"]).stdin(Stdio::piped()).spawn();
        let child = child.as_mut().unwrap();
        let directory = format!("/proc/{}/fd", child.id());
        let directory = Path::new(&directory);
        // It may have inherited some of other tests besides its own five.
        let end = Instant::now() + Duration::from_secs(30);
        let is_right = || {
            let (counted, size) = (count_files(directory)?, fs::metadata(directory).ok()?.size());
            (counted >= 5 && (size == 0 || size == u64::from(counted))).then_some(())
        };
        while is_right().is_none() {
            assert!(Instant::now() < end, "{:?} files", count_files(directory));
            thread::sleep(Duration::from_millis(5));
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(count_files(directory), None, "it has gone");
    }

    #[test]
    fn numbers_are_those_of_the_files() {
        let stat =
            "7 (a ) b) S 1 7 7 0 -1 4194304 101 5 2 0 3 4 0 0 20 0 6 0 99 1 2 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 8 0 0";
        let (identity, reading) = parse_stat(stat).unwrap();
        assert_eq!(identity, Identity { start_tick: 99, resident_bytes: 2 * 4096 });
        assert_eq!((reading.cpu_ns, reading.threads), (Some(7 * TICK_NS), 6));
        assert_eq!((reading.minor_faults, reading.major_faults, reading.io_delay_ns), (101, 2, Some(8 * TICK_NS)));
        let status = "Name:\tx\nRssAnon:\t       4 kB\nRssFile:\t 8 kB\nRssShmem:\t 0 kB\nVmSwap:\t 1 kB\n";
        let resident = parse_status(status).unwrap();
        assert_eq!((resident.total_bytes(), resident.swap_bytes), (12 << 10, 1 << 10));
        assert_eq!(parse_status("Name:\tkthreadd\n"), None);
        let shares = parse_shares("Rss: 9 kB\nPss:    5 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty:   2 kB\n");
        assert_eq!(shares, Shares { proportional_bytes: 5 << 10, unique_bytes: 3 << 10 });
        assert_eq!(parse_io("rchar: 1\nread_bytes: 2\nwrite_bytes: 3\n"), Storage { read_bytes: 2, write_bytes: 3 });
    }
}
