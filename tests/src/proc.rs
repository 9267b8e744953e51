//! What the kernel's own books say of a process and of the machine: /proc, read by other code than the agent's.

use anyhow::{Context, Result, bail};
use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

/// Page faults of all threads of a process so far, minor and major: fields 10 and 12 of /proc/PID/stat.
///
/// # Errors
/// No such process.
pub fn faults(pid: u32) -> Result<u64> {
    let stat = stat(pid)?;
    let fields = fields_after_name(&stat)?;
    Ok(field(&fields, 10)? + field(&fields, 12)?)
}

/// Page faults of the whole machine so far, as far as they could be resolved: the line `pgfault` of /proc/vmstat.
///
/// # Errors
/// An unreadable /proc/vmstat.
pub fn all_faults() -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat").context("cannot read /proc/vmstat")?;
    let value = text.lines().find_map(|line| line.strip_prefix("pgfault ")).context("no line `pgfault`")?;
    value.trim().parse().with_context(|| format!("not a number of faults: {value:?}"))
}

/// Bytes of anonymous memory, of files and of shared memory that the kernel's log says a process had when it was killed for want
/// of memory.
///
/// # Errors
/// The log cannot be read, or has no such line.
pub fn bytes_when_killed(pid: u32) -> Result<[u64; 3]> {
    let start = format!("Killed process {pid} (");
    let log = kernel_log()?;
    let line =
        log.lines().rev().find_map(|line| line.split_once(&start)).with_context(|| format!("no line '{start}'"))?.1;
    let amount = |name: &str| -> Result<u64> {
        let value =
            line.split_once(name).and_then(|(_, rest)| rest.split_once("kB")).with_context(|| line.to_owned())?.0;
        Ok(value.parse::<u64>()? << 10)
    };
    Ok([amount("anon-rss:")?, amount("file-rss:")?, amount("shmem-rss:")?])
}

/// By how many bytes two readings of one of a process's counters of memory may differ: what each CPU keeps to itself before it adds
/// it to the whole (`percpu_counter_batch`), which newer kernels add for their log.
///
/// # Errors
/// The number of CPUs is not known.
pub fn counters_apart() -> Result<u64> {
    let cpus = std::thread::available_parallelism()?.get() as u64;
    Ok((cpus * (2 * cpus).max(32)) << 12)
}

/// All that is kept of the kernel's log.
fn kernel_log() -> Result<String> {
    let mut file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").context("/dev/kmsg")?;
    let (mut log, mut record) = (String::new(), [0; 8192]);
    loop {
        match file.read(&mut record) {
            Ok(0) => return Ok(log),
            Ok(bytes) => log += &String::from_utf8_lossy(&record[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(log),
            // What was next has been overwritten: reading goes on behind it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error).context("cannot read /dev/kmsg"),
        }
    }
}

/// A file of each of a process's threads, but for those that end while they are looked through.
///
/// # Errors
/// No such process, or a file that cannot be read.
pub fn of_threads(pid: u32, file: &str) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(thread?.path().join(file)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            text => texts.push(text?),
        }
    }
    Ok(texts)
}

/// State letter of a process, such as S or Z.
///
/// # Errors
/// No such process.
pub fn state(pid: u32) -> Result<char> {
    let stat = stat(pid)?;
    let fields = fields_after_name(&stat)?;
    fields.first().and_then(|f| f.chars().next()).context("/proc/PID/stat has no state")
}

/// Bytes of a process's heap: from field 47 of /proc/PID/stat to the end of what /proc/PID/maps calls the heap.
///
/// # Errors
/// No such process.
pub fn heap_bytes(pid: u32) -> Result<u64> {
    let start = field(&fields_after_name(&stat(pid)?)?, 47)?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("cannot read /proc/PID/maps")?;
    let Some(range) = maps.lines().rev().find(|line| line.ends_with("[heap]")) else { return Ok(0) };
    let end = range.split(['-', ' ']).nth(1).context("no range")?;
    Ok(u64::from_str_radix(end, 16)?.saturating_sub(start.next_multiple_of(4096)))
}

/// A number of bytes of /proc/PID/status or /proc/PID/smaps_rollup, by its name: these files tell KiB.
///
/// # Errors
/// No such process, file or name.
pub fn bytes(pid: u32, file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("no /proc/{pid}/{file}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("no {name}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{name} is {line:?}"))?;
    Ok(kib * 1024)
}

/// Pids of a process's children.
///
/// # Errors
/// No such process, or a kernel without CONFIG_PROC_CHILDREN.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.split_whitespace().map(|pid| pid.parse().with_context(|| format!("not a pid: {pid}"))).collect()
}

/// How many files a process has open, counted one by one.
///
/// # Errors
/// No such process.
pub fn open_files(pid: u32) -> Result<u64> {
    let directory = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?.count() as u64)
}

/// CPU time of a process so far, in seconds: fields 14 and 15 of /proc/PID/stat.
///
/// # Errors
/// No such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = stat(pid)?;
    let fields = fields_after_name(&stat)?;
    Ok((field(&fields, 14)? + field(&fields, 15)?) as f64 / 100.0)
}

/// Forks since boot, of threads too: the line `processes` of /proc/stat.
///
/// # Errors
/// An unreadable /proc/stat.
pub fn forks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    parse_forks(&stat)
}

fn parse_forks(stat: &str) -> Result<u64> {
    let value =
        stat.lines().find_map(|l| l.strip_prefix("processes ")).context("/proc/stat has no line `processes`")?;
    value.trim().parse().with_context(|| format!("not a number of processes: {value:?}"))
}

fn stat(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/stat");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// The fields from the third on: names may hold spaces and brackets, so count from the last bracket.
fn fields_after_name(stat: &str) -> Result<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(')').with_context(|| format!("not a /proc/PID/stat: {stat:?}"))?;
    Ok(rest.split_whitespace().collect())
}

/// A field by its number in proc_pid_stat(5), which counts from 1.
fn field(fields: &[&str], number: usize) -> Result<u64> {
    let text = fields.get(number - 3).with_context(|| format!("/proc/PID/stat has no field {number}"))?;
    text.parse().with_context(|| format!("field {number} of /proc/PID/stat is {text:?}"))
}

/// The first two numbers of the kernel's release.
///
/// # Errors
/// It has none.
pub fn kernel_release() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("no numbers in {release}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let fields = fields_after_name("7 (a ) b) S 1 7 7 0 -1 4194304 101 5 2 0 0 0").unwrap();
        assert_eq!(field(&fields, 10).unwrap() + field(&fields, 12).unwrap(), 103);
        assert_eq!(fields[0], "S");
    }

    #[test]
    fn this_process_has_faulted_and_runs() {
        assert!(faults(std::process::id()).unwrap() > 0);
        assert!(forks().unwrap() > 0);
        assert!(faults(u32::MAX).is_err());
    }

    #[test]
    fn forks_are_found_among_other_lines() {
        assert_eq!(parse_forks("cpu 1 2\nprocesses 77\nprocs_running 2\n").unwrap(), 77);
        assert!(parse_forks("cpu 1 2\n").is_err());
    }
}
