//! Requests to a block device, a known number of known size, past the page cache or through it.

use crate::{
    handshake::{Arguments, Report},
    system::{self, Mapping, PAGE},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    ffi::c_long,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    time::Instant,
};

/// `BLKDISCARD` of linux/fs.h.
const DISCARD: libc::Ioctl = 0x1277;
/// Bytes written at once through the page cache.
const CHUNK: usize = 64 << 10;

/// Keeps this program's own pages in memory: one that the kernel took away, as it does of its own accord on some machines,
/// would be read from a disk again in the middle of what is counted.
fn stay_in_memory() -> Result<()> {
    // SAFETY: locks this process's pages, and changes nothing else.
    let locked = unsafe { libc::mlockall(libc::MCL_CURRENT) };
    ensure!(locked == 0, "mlockall: {}", io::Error::last_os_error());
    Ok(())
}

/// What is done to a block.
#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
}

impl Operation {
    fn of(arguments: &mut Arguments<'_>) -> Result<Self> {
        match arguments.word("operation")? {
            "read" => Ok(Self::Read),
            "write" => Ok(Self::Write),
            other => bail!("no operation {other}"),
        }
    }
}

/// `direct read|write PATH BLOCKS BYTES`: one request a block, one after the other, with a block's gap between any two.
/// Tells how many went well, how many failed, their bytes, and how long the shortest, the middle one and the longest took.
pub(crate) fn direct(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    stay_in_memory()?;
    let operation = Operation::of(arguments)?;
    let file = open_direct(arguments.word("path")?)?;
    let blocks: usize = arguments.value("blocks")?;
    let bytes: usize = arguments.value("bytes")?;
    let mut block = touched(bytes)?;
    let mut times_ns = vec![0u64; blocks];
    let (mut done, mut failed) = (0u64, 0u64);
    for (i, time) in times_ns.iter_mut().enumerate() {
        let start = Instant::now();
        match transfer(&file, operation, block.bytes_mut(), (2 * i * bytes) as u64) {
            Ok(()) => done += 1,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => failed += 1,
            Err(error) => return Err(error).with_context(|| format!("block {i}")),
        }
        *time = start.elapsed().as_nanos() as u64;
    }
    times_ns.sort_unstable();
    report.number("ops", done);
    report.number("failed", failed);
    report.number("bytes", done * bytes as u64);
    report.number("min_ns", times_ns.first().copied().unwrap_or(0));
    report.number("p50_ns", times_ns.get(blocks / 2).copied().unwrap_or(0));
    report.number("max_ns", times_ns.last().copied().unwrap_or(0));
    report.number("wait_ns", times_ns.iter().sum());
    Ok(())
}

/// `durable PATH BLOCKS BYTES`: writes past the page cache, each of which the device must have made durable when it returns.
/// Tells the bytes.
pub(crate) fn durable(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    stay_in_memory()?;
    let mut options = OpenOptions::new();
    let file = options.write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(arguments.word("path")?)?;
    let blocks: usize = arguments.value("blocks")?;
    let bytes: usize = arguments.value("bytes")?;
    let mut block = touched(bytes)?;
    for i in 0..blocks {
        file.write_all_at(&block.bytes_mut()[..bytes], (2 * i * bytes) as u64).with_context(|| format!("block {i}"))?;
    }
    report.number("bytes", (blocks * bytes) as u64);
    Ok(())
}

fn transfer(file: &File, operation: Operation, block: &mut [u8], offset: u64) -> io::Result<()> {
    match operation {
        Operation::Read => file.read_exact_at(block, offset),
        Operation::Write => file.write_all_at(block, offset),
    }
}

/// `batch read|write PATH BLOCKS BYTES`: neighbouring blocks handed over in one system call, so that the kernel may join
/// them to larger requests. Tells the bytes.
pub(crate) fn batch(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    hand_over(arguments, report, &|blocks| (0..blocks).collect())
}

/// `interleaved read|write PATH BLOCKS BYTES`: as `batch`, but every other block first and then those between them, so that what
/// can be joined has become a request of its own before.
pub(crate) fn interleaved(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    hand_over(arguments, report, &|blocks| (0..blocks).step_by(2).chain((1..blocks).step_by(2)).collect())
}

fn hand_over(arguments: &mut Arguments<'_>, report: &mut Report, order: &dyn Fn(usize) -> Vec<usize>) -> Result<()> {
    let operation = Operation::of(arguments)?;
    let file = open_direct(arguments.word("path")?)?;
    let blocks: usize = arguments.value("blocks")?;
    let bytes: usize = arguments.value("bytes")?;
    let mut memory = touched(blocks * bytes)?;
    let mut requests: Vec<libc::iocb> = memory
        .bytes_mut()
        .chunks_mut(bytes)
        .enumerate()
        .map(|(i, b)| request(&file, operation, b, i * bytes))
        .collect();
    let first = requests.as_mut_ptr();
    // SAFETY: all of them are in the list.
    let mut pointers: Vec<*mut libc::iocb> =
        order(blocks).into_iter().map(|place| unsafe { first.add(place) }).collect();
    let mut results = vec![[0u64; 4]; blocks];
    let mut context = 0u64;
    // SAFETY: every pointer leads to memory that outlives the wait below: the requests, their buffers, the results.
    let finished = unsafe {
        asynchronous(libc::syscall(libc::SYS_io_setup, blocks, &raw mut context), "io_setup")?;
        let submitted = libc::syscall(libc::SYS_io_submit, context, blocks, pointers.as_mut_ptr());
        let submitted = asynchronous(submitted, "io_submit")?;
        let none = std::ptr::null_mut::<libc::timespec>();
        let finished = libc::syscall(libc::SYS_io_getevents, context, submitted, blocks, results.as_mut_ptr(), none);
        let finished = asynchronous(finished, "io_getevents")?;
        asynchronous(libc::syscall(libc::SYS_io_destroy, context), "io_destroy")?;
        finished
    };
    ensure!(finished == blocks as c_long, "{finished} of {blocks} blocks came back");
    // The third word of an event is the number of bytes, or a negative error.
    ensure!(results.iter().all(|r| r[2] == bytes as u64), "a block came back short");
    report.number("bytes", (blocks * bytes) as u64);
    report.number("blocks", blocks as u64);
    Ok(())
}

fn request(file: &File, operation: Operation, block: &mut [u8], offset: usize) -> libc::iocb {
    // SAFETY: all of an iocb are numbers, for which zero is valid.
    let mut request: libc::iocb = unsafe { std::mem::zeroed() };
    request.aio_lio_opcode = match operation {
        Operation::Read => 0,
        Operation::Write => 1,
    };
    request.aio_fildes = file.as_raw_fd() as u32;
    request.aio_buf = block.as_mut_ptr() as u64;
    request.aio_nbytes = block.len() as u64;
    request.aio_offset = offset as i64;
    request
}

fn asynchronous(outcome: c_long, call: &str) -> Result<c_long> {
    if outcome < 0 { Err(io::Error::last_os_error()).with_context(|| format!("{call} failed")) } else { Ok(outcome) }
}

/// `buffered PATH BYTES`: writes through the page cache, then waits until all is on the device.
pub(crate) fn buffered(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    write_buffered(arguments, report)?.sync_all().context("fsync failed")
}

/// `dirty PATH BYTES`: writes through the page cache, and leaves the rest to the kernel.
pub(crate) fn dirty(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    write_buffered(arguments, report).map(drop)
}

fn write_buffered(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<File> {
    let file = OpenOptions::new().write(true).open(arguments.word("path")?)?;
    let bytes: usize = arguments.value("bytes")?;
    let mut chunk = touched(CHUNK)?;
    for offset in (0..bytes).step_by(CHUNK) {
        file.write_all_at(&chunk.bytes_mut()[..CHUNK.min(bytes - offset)], offset as u64)?;
    }
    report.number("bytes", bytes as u64);
    Ok(file)
}

/// `flush PATH COUNT`: fsync(2) of a device with nothing to write: one flush each.
pub(crate) fn flush(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let file = OpenOptions::new().write(true).open(arguments.word("path")?)?;
    let count: u64 = arguments.value("count")?;
    for _ in 0..count {
        file.sync_all().context("fsync failed")?;
    }
    report.number("ops", count);
    Ok(())
}

/// `discard PATH COUNT BYTES`: tells the device that so many ranges, apart from each other, are not needed.
pub(crate) fn discard(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let file = OpenOptions::new().write(true).open(arguments.word("path")?)?;
    let count: u64 = arguments.value("count")?;
    let bytes: u64 = arguments.value("bytes")?;
    for i in 0..count {
        let range = [2 * i * bytes, bytes];
        // SAFETY: the ioctl reads two numbers from the pointer.
        system::check(unsafe { libc::ioctl(file.as_raw_fd(), DISCARD, range.as_ptr()) }, "BLKDISCARD")?;
    }
    report.number("ops", count);
    report.number("bytes", count * bytes);
    Ok(())
}

fn open_direct(path: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
    file.with_context(|| format!("cannot open {path} past the page cache"))
}

/// Memory that is present, aligned as O_DIRECT wants it.
fn touched(bytes: usize) -> Result<Mapping> {
    let memory = Mapping::anonymous(bytes.next_multiple_of(PAGE))?;
    (0..memory.pages()).for_each(|page| memory.write(page));
    Ok(memory)
}
