//! Page faults, a known number of a known kind: each page is touched once, and nothing else is.

use crate::{
    handshake::{Arguments, Report},
    system::{self, Mapping, PAGE},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read, Write},
    os::{fd::FromRawFd, unix::fs::FileExt},
    thread,
    time::{Duration, Instant},
};

/// Pages the kernel maps around a fault of a file's page: touching one page of each such window faults each time.
const FAULT_AROUND: usize = 16;
/// The machine code of `ret`.
const RETURN: u8 = 0xc3;
/// Pages a storm touches before it gives them back.
const STORM_PAGES: usize = 512;

/// `faults ACCESS PAGES THREADS`: that many faults of one kind, shared out among threads. Tells them, and the process's
/// own faults meanwhile by getrusage(2).
pub(crate) fn faults(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let access = arguments.word("access")?;
    let pages: usize = arguments.value("pages")?;
    let threads: usize = arguments.value("threads")?;
    ensure!(threads > 0 && pages.is_multiple_of(threads), "{pages} pages cannot be shared by {threads} threads");
    let usage = if threads == 1 {
        touch(access, pages)?
    } else {
        thread::scope(|scope| {
            let each: Vec<_> = (0..threads).map(|_| scope.spawn(|| touch(access, pages / threads))).collect();
            let touched = each.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("a thread panicked")));
            touched.sum::<Result<u64>>()
        })?
    };
    report.number("faults", pages as u64);
    // Of the whole process: with several threads each sees the others' faults too.
    report.number("usage_faults", usage);
    Ok(())
}

/// Faults once on each of `pages` fresh pages, and gives the process's faults in between.
fn touch(access: &str, pages: usize) -> Result<u64> {
    match access {
        "user-read" => with_pages(pages, |memory, page| {
            memory.read(page);
        }),
        "user-write" => with_pages(pages, Mapping::write),
        "user-copy" => copy_on_write(pages),
        "user-fetch" => fetch(pages),
        "kernel-read" => send_through_pipe(pages),
        "kernel-write" => fill_by_kernel(pages, false),
        "kernel-copy" => fill_by_kernel(pages, true),
        other => bail!("no access {other}"),
    }
}

fn counted(action: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = system::faults();
    action()?;
    Ok(system::faults() - before)
}

fn with_pages(pages: usize, act: impl Fn(&Mapping, usize)) -> Result<u64> {
    let memory = Mapping::anonymous(pages * PAGE)?;
    counted(|| {
        (0..pages).for_each(|page| act(&memory, page));
        Ok(())
    })
}

/// Reads first, which maps the page of zeroes everywhere, then writes.
fn copy_on_write(pages: usize) -> Result<u64> {
    let memory = Mapping::anonymous(pages * PAGE)?;
    for page in 0..pages {
        memory.read(page);
    }
    counted(|| {
        (0..pages).for_each(|page| memory.write(page));
        Ok(())
    })
}

/// Calls a `ret` in each window of a file in memory.
fn fetch(windows: usize) -> Result<u64> {
    let stride = FAULT_AROUND * PAGE;
    // SAFETY: the name is a C string; the descriptor that comes back is owned by nobody else.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"code".as_ptr(), libc::MFD_CLOEXEC);
        ensure!(descriptor >= 0, "memfd_create failed: {}", std::io::Error::last_os_error());
        File::from_raw_fd(descriptor)
    };
    file.set_len((windows * stride) as u64)?;
    for window in 0..windows {
        file.write_all_at(&[RETURN], (window * stride) as u64)?;
    }
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file);
    let start = system::mmap(windows * stride, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE, descriptor)
        .context("cannot map code")?;
    let code = Mapping { start: start as *mut u8, bytes: windows * stride };
    counted(|| {
        for window in 0..windows {
            let address = code.start as usize + window * stride;
            // SAFETY: a `ret` stands there, in executable memory: a function that does nothing.
            let function: extern "C" fn() = unsafe { std::mem::transmute(address) };
            function();
        }
        Ok(())
    })
}

/// Lets the kernel read the first byte of each page.
fn send_through_pipe(pages: usize) -> Result<u64> {
    let mut memory = Mapping::anonymous(pages * PAGE)?;
    let (mut reader, mut writer): (PipeReader, PipeWriter) = std::io::pipe()?;
    let bytes = memory.bytes_mut();
    counted(|| {
        let mut received = [0];
        for page in bytes.chunks(PAGE) {
            writer.write_all(&page[..1])?;
            reader.read_exact(&mut received)?;
        }
        Ok(())
    })
}

/// Lets the kernel write to each page: to fresh ones, or to such as were read before.
fn fill_by_kernel(pages: usize, read_before: bool) -> Result<u64> {
    let mut memory = Mapping::anonymous(pages * PAGE)?;
    if read_before {
        for page in 0..pages {
            memory.read(page);
        }
    }
    let mut zero = File::open("/dev/zero")?;
    let bytes = memory.bytes_mut();
    counted(|| zero.read_exact(bytes).context("cannot read zeroes"))
}

/// `storm PROCESSOR MILLISECONDS RUN`: writes to fresh pages on one processor, giving way after each RUN of them, for so
/// long. Tells how many faults that were.
pub(crate) fn storm(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    system::pin(arguments.value("processor")?)?;
    let time = Duration::from_millis(arguments.value("milliseconds")?);
    let run: usize = arguments.value("run")?;
    ensure!(run > 0, "a run of 0 faults would never give way");
    let memory = Mapping::anonymous(STORM_PAGES * PAGE)?;
    let (start, mut made) = (Instant::now(), 0);
    while start.elapsed() < time {
        for page in 0..STORM_PAGES {
            memory.write(page);
            if page % run == 0 {
                system::give_way();
            }
        }
        made += STORM_PAGES as u64;
        memory.advise(libc::MADV_DONTNEED)?;
    }
    report.number("faults", made);
    Ok(())
}

/// `allocate BYTES`: touches that much memory, or dies of it.
pub(crate) fn allocate(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let bytes: usize = arguments.value("bytes")?;
    let memory = Mapping::anonymous(bytes)?;
    (0..memory.pages()).for_each(|page| memory.write(page));
    report.number("bytes", bytes as u64);
    Ok(())
}
