//! The bpf and perf system calls that aya does not offer: batches, test runs, statistics, perf events without tracefs.
//!
//! The structures are the kernel's (include/uapi/linux/bpf.h, perf_event.h), cut after the last field that is used here.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Commands of bpf(2).
mod command {
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const PROG_TEST_RUN: libc::c_long = 10;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub(super) const BTF_GET_FD_BY_ID: libc::c_long = 19;
    pub(super) const BTF_GET_NEXT_ID: libc::c_long = 23;
    pub(super) const MAP_LOOKUP_BATCH: libc::c_long = 24;
    pub(super) const MAP_DELETE_BATCH: libc::c_long = 27;
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Inserts or replaces one entry. `value` must be as long as the map's values are, for all possible CPUs where it has one
/// for each.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        reserved: 0,
        // The kernel insists on null where there is none.
        key: if key.is_empty() { 0 } else { key.as_ptr() as u64 },
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: both buffers live, and are as long as the map's keys and values.
    unsafe { bpf(command::MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Adds an element at the end of a queue. `value` must be as long as its elements are.
pub fn push(queue: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    update(queue, &[], value)
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a batched walk stands: opaque to us, made by the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Cursor(u64);

/// What one step of a batched walk read.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Entries read into the buffers.
    pub entries: usize,
    /// Where to go on; none at the end of the map.
    pub next: Option<Cursor>,
}

/// Reads as many entries of a hash map as the buffers have room for.
///
/// `keys` and `values` must have room for the same number of entries, `key_size` bytes a key. `ENOSPC` means that not
/// even one of the map's buckets fits: try again with larger buffers.
pub fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    keys: &mut [u8],
    key_size: usize,
    values: &mut [u8],
) -> io::Result<Batch> {
    // The kernel writes four bytes for hash maps, but asks for room for a key in general.
    let mut next = [0u64; 8];
    let mut attr = BatchAttr {
        in_batch: from.as_ref().map_or(0, |cursor| &raw const cursor.0 as u64),
        out_batch: next.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: (keys.len() / key_size) as u32,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: all addresses point to live buffers of the sizes that `count` tells the kernel.
    match unsafe { bpf(command::MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Ok(Batch { entries: attr.count as usize, next: Some(Cursor(next[0])) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(Batch { entries: attr.count as usize, next: None })
        }
        Err(error) => Err(error),
    }
}

/// Deletes entries of a hash map; keys that are not there are passed over.
pub fn delete_batch(map: BorrowedFd<'_>, mut keys: &[u8], key_size: usize) -> io::Result<()> {
    while !keys.is_empty() {
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            count: (keys.len() / key_size) as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `keys` holds `count` keys.
        match unsafe { bpf(command::MAP_DELETE_BATCH, &mut attr) } {
            Ok(_) => return Ok(()),
            // The kernel stops at the first key it does not find, and says how many it deleted before it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                keys = keys.get((attr.count as usize + 1) * key_size..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Run-time statistics of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramStatistics {
    /// Time it ran while statistics were on, in nanoseconds.
    pub run_time_ns: u64,
    /// Runs while statistics were on.
    pub runs: u64,
    /// Runs the kernel skipped because the program was already running on that CPU. Counted always; 0 before Linux 5.12.
    pub skipped_runs: u64,
}

/// `struct bpf_prog_info` up to `recursion_misses`.
#[repr(C)]
#[derive(FromZeros)]
struct ProgramInfo {
    unused: [u64; 24],
    run_time_ns: u64,
    runs: u64,
    skipped_runs: u64,
}

const _: () = assert!(std::mem::offset_of!(ProgramInfo, run_time_ns) == 192);

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// Reads a program's statistics.
pub fn program_statistics(program: BorrowedFd<'_>) -> io::Result<ProgramStatistics> {
    let mut info = ProgramInfo::new_zeroed();
    let mut attr = InfoAttr {
        fd: program.as_raw_fd() as u32,
        length: size_of::<ProgramInfo>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: `info` is as long as `length` says; all fields are plain numbers, and none before the last one asks the
    // kernel to follow a pointer, as all are zero.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(ProgramStatistics { run_time_ns: info.run_time_ns, runs: info.runs, skipped_runs: info.skipped_runs })
}

/// `struct bpf_map_info` up to `max_entries`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// How many entries a map has room for.
pub fn max_entries(map: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = MapInfo::default();
    let mut attr =
        InfoAttr { fd: map.as_raw_fd() as u32, length: size_of::<MapInfo>() as u32, info: &raw mut info as u64 };
    // SAFETY: `info` is as long as `length` says, and all of it are plain numbers.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info.max_entries)
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_length: u32,
    kernel_btf: u32,
}

/// Of `union bpf_attr`, what the commands take that walk over ids.
#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The type information of the kernel itself, without its modules, since Linux 5.11. Needs `CAP_SYS_ADMIN`.
pub fn vmlinux_btf() -> io::Result<Vec<u8>> {
    let mut id = 0;
    loop {
        let mut next = IdAttr { id, ..IdAttr::default() };
        // SAFETY: plain numbers.
        unsafe { bpf(command::BTF_GET_NEXT_ID, &mut next) }?;
        id = next.next_id;
        let mut open = IdAttr { id, ..IdAttr::default() };
        // SAFETY: plain numbers.
        let Ok(fd) = (unsafe { bpf(command::BTF_GET_FD_BY_ID, &mut open) }) else { continue };
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        let btf = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut name = [0u8; 16];
        let mut info = BtfInfo { name: name.as_mut_ptr() as u64, name_length: 16, ..BtfInfo::default() };
        btf_info(&btf, &mut info)?;
        if info.kernel_btf == 0 || !name.starts_with(b"vmlinux\0") {
            continue;
        }
        let mut data = vec![0; info.btf_size as usize];
        let mut info = BtfInfo { btf: data.as_mut_ptr() as u64, btf_size: info.btf_size, ..BtfInfo::default() };
        btf_info(&btf, &mut info)?;
        return Ok(data);
    }
}

fn btf_info(btf: &OwnedFd, info: &mut BtfInfo) -> io::Result<()> {
    let mut attr =
        InfoAttr { fd: btf.as_raw_fd() as u32, length: size_of::<BtfInfo>() as u32, info: &raw mut *info as u64 };
    // SAFETY: `info` is as long as `length` says; its callers' buffers live and are as long as they say in it.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    program_fd: u32,
    result: u32,
    data_sizes: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_sizes: [u32; 2],
    context: [u64; 2],
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// Runs a raw-tracepoint program once, in the calling thread.
pub fn test_run(program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = TestRunAttr { program_fd: program.as_raw_fd() as u32, ..TestRunAttr::default() };
    // SAFETY: no buffers are passed.
    unsafe { bpf(command::PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// bpf(2), tried again while the kernel says it was interrupted.
///
/// # Safety
/// `attr` must be what the command takes, and every address in it must be good for what the command does with it.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    loop {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

/// `struct perf_event_attr`, first published size.
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_COUNT_SW_PAGE_FAULTS: u64 = 2;
/// `_IOW('$', 8, __u32)`
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
/// `_IO('$', 0)`
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;

/// Runs a program at a tracepoint of the tracing file system, given by its number. Dropping the descriptor detaches it.
pub fn attach_tracepoint(id: u64, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // A program runs on every CPU, whichever CPU its event was opened for.
    attach_event(PERF_TYPE_TRACEPOINT, id, 1, 0, program)
}

/// Runs a program at every `period`th page fault of one CPU, whichever task takes it. Dropping the descriptor detaches it.
pub fn attach_page_faults(period: u64, cpu: u32, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    attach_event(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS, period, cpu, program)
}

fn attach_event(kind: u32, config: u64, sample_period: u64, cpu: u32, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let size = size_of::<PerfEventAttr>() as u32;
    let attr = PerfEventAttr { kind, size, config, sample_period, ..PerfEventAttr::default() };
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    // SAFETY: `attr` is as long as its size field says.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC) };
    let fd = check(fd)?;
    // SAFETY: a descriptor that was just opened and belongs to nobody else.
    let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // SAFETY: the commands take a descriptor and nothing.
    check(i64::from(unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) }))?;
    // SAFETY: as above.
    check(i64::from(unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) }))?;
    Ok(event)
}

/// The error behind a negative result.
pub fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
