//! Page faults, a known number of a known kind: each page is touched once, and nothing else is.

use crate::{
    handshake::{Arguments, Report},
    system::{self, Mapping, PAGE},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    thread,
    time::{Duration, Instant},
};

/// Pages the kernel maps around a fault of a file's page: touching one page of each such window faults each time.
const FAULT_AROUND: usize = 16;
/// The machine code of `ret`.
const RETURN: u8 = 0xc3;
/// Pages a storm touches before it gives them back.
const STORM_PAGES: usize = 512;

/// `faults ACCESS PAGES THREADS`: that many faults of one kind, shared out among threads.
pub(crate) fn faults(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let access = arguments.word("access")?;
    let pages: usize = arguments.value("pages")?;
    let threads: usize = arguments.value("threads")?;
    ensure!(threads > 0 && pages.is_multiple_of(threads), "{pages} pages cannot be shared by {threads} threads");
    if threads == 1 {
        touch(access, pages)?;
    } else {
        thread::scope(|scope| {
            let each: Vec<_> = (0..threads).map(|_| scope.spawn(|| touch(access, pages / threads))).collect();
            each.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
        })?;
    }
    report.number("faults", pages as u64);
    Ok(())
}

/// Faults once on each of `pages` fresh pages.
fn touch(access: &str, pages: usize) -> Result<()> {
    match access {
        "user-read" => read_each(&Mapping::anonymous(pages * PAGE)?),
        "user-write" => write_each(&Mapping::anonymous(pages * PAGE)?),
        "user-copy" => write_each(&only_read(pages)?),
        "user-fetch" => return fetch_each(pages),
        "kernel-read" => return send_each(Mapping::anonymous(pages * PAGE)?),
        "kernel-write" => return fill(Mapping::anonymous(pages * PAGE)?),
        "kernel-copy" => return fill(only_read(pages)?),
        other => bail!("no access {other}"),
    }
    Ok(())
}

fn read_each(memory: &Mapping) {
    for page in 0..memory.pages() {
        memory.read(page);
    }
}

fn write_each(memory: &Mapping) {
    (0..memory.pages()).for_each(|page| memory.write(page));
}

/// Memory that was read, which mapped the page of zeroes everywhere: writing to it copies, one fault a page.
fn only_read(pages: usize) -> Result<Mapping> {
    let memory = Mapping::anonymous(pages * PAGE)?;
    read_each(&memory);
    Ok(memory)
}

/// Calls a `ret` in each window of a file in memory.
fn fetch_each(windows: usize) -> Result<()> {
    let stride = FAULT_AROUND * PAGE;
    // SAFETY: the name is a C string; the descriptor that comes back is owned by nobody else.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"code".as_ptr(), libc::MFD_CLOEXEC);
        ensure!(descriptor >= 0, "memfd_create failed: {}", io::Error::last_os_error());
        File::from_raw_fd(descriptor)
    };
    file.set_len((windows * stride) as u64)?;
    for window in 0..windows {
        file.write_all_at(&[RETURN], (window * stride) as u64)?;
    }
    let start = system::mmap(windows * stride, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE, file.as_raw_fd())
        .context("cannot map code")?;
    let code = Mapping { start: start as *mut u8, bytes: windows * stride };
    for window in 0..windows {
        let address = code.start as usize + window * stride;
        // SAFETY: a `ret` stands there, in executable memory: a function that does nothing.
        let function: extern "C" fn() = unsafe { std::mem::transmute(address) };
        function();
    }
    Ok(())
}

/// Lets the kernel read the first byte of each page.
fn send_each(mut memory: Mapping) -> Result<()> {
    let (mut reader, mut writer) = io::pipe()?;
    let mut received = [0];
    for page in memory.bytes_mut().chunks(PAGE) {
        writer.write_all(&page[..1])?;
        reader.read_exact(&mut received)?;
    }
    Ok(())
}

/// Lets the kernel write to each page.
fn fill(mut memory: Mapping) -> Result<()> {
    File::open("/dev/zero")?.read_exact(memory.bytes_mut()).context("cannot read zeroes")
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

/// `hold BYTES`: touches that much memory, and keeps it.
pub(crate) fn hold(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let bytes: usize = arguments.value("bytes")?;
    let memory = Mapping::anonymous(bytes)?;
    write_each(&memory);
    std::mem::forget(memory);
    report.number("bytes", bytes as u64);
    Ok(())
}

/// `allocate BYTES`: touches that much memory, or dies of it.
pub(crate) fn allocate(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let bytes: usize = arguments.value("bytes")?;
    let memory = Mapping::anonymous(bytes)?;
    write_each(&memory);
    report.number("bytes", bytes as u64);
    Ok(())
}
