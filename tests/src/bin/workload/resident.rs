//! Memory that is touched and kept, of one kind, and given back.

use crate::{
    handshake::{Arguments, Report},
    system::{self, Mapping, PAGE},
};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::fd::AsRawFd,
};

/// `keep KIND BYTES`: maps that much of a kind, touches all of it, keeps it, and tells where it is.
pub(crate) fn keep(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let kind = arguments.word("kind")?;
    let bytes: usize = arguments.value("bytes")?;
    let memory = match kind {
        "anon" => Mapping::anonymous(bytes)?,
        "shmem" => {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let start = system::mmap(bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1).context("cannot map")?;
            Mapping { start: start as *mut u8, bytes }
        }
        "file" => file(bytes)?,
        other => bail!("no kind {other}"),
    };
    for page in 0..memory.pages() {
        if kind == "file" {
            memory.read(page);
        } else {
            memory.write(page);
        }
    }
    report.number("address", memory.start as u64);
    report.number("bytes", bytes as u64);
    std::mem::forget(memory);
    Ok(())
}

/// A file on a disk, written there and mapped, so that its pages can go at once.
fn file(bytes: usize) -> Result<Mapping> {
    let path = format!("/var/tmp/monitor-test-{}", std::process::id());
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    let part = vec![7; 256 * PAGE];
    for _ in 0..bytes / part.len() {
        file.write_all(&part)?;
    }
    file.sync_all()?;
    let start = system::mmap(bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd()).context("cannot map it")?;
    Ok(Mapping { start: start as *mut u8, bytes })
}

/// `give-back ADDRESS BYTES`: unmaps what was kept.
pub(crate) fn give_back(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let (address, bytes): (usize, usize) = (arguments.value("address")?, arguments.value("bytes")?);
    system::munmap(address, bytes).context("cannot unmap it")?;
    report.number("bytes", bytes as u64);
    Ok(())
}
