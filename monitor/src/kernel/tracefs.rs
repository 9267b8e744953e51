//! Numbers of the tracing file system's tracepoints, read from an instance that is mounted nowhere, or from the one that
//! the host has mounted.

use super::syscall::check;
use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A tracing file system. One of our own is seen by nobody and goes when this is dropped.
#[derive(Debug)]
pub struct Tracefs {
    root: OwnedFd,
}

/// Where hosts mount it.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

impl Tracefs {
    /// Makes one, which takes `CAP_SYS_ADMIN`, or takes the host's. The error is that of the first.
    pub fn open() -> io::Result<Self> {
        Self::detached().or_else(|error| {
            let mounted = MOUNTED.iter().find_map(|place| File::open(place).ok());
            let mounted = mounted.map(|root| Self { root: root.into() });
            mounted
                .filter(|tracefs| tracefs.tracepoint("sched", "sched_process_exit").is_ok())
                .ok_or_else(|| explained(error))
        })
    }

    fn detached() -> io::Result<Self> {
        // SAFETY: a constant string; the result is checked.
        let context = check(unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), FSOPEN_CLOEXEC) })?;
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        let context = unsafe { OwnedFd::from_raw_fd(context as i32) };
        // SAFETY: the command takes no key, no value and no further number.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, 0usize, 0usize, 0)
        })?;
        // SAFETY: no pointers.
        let root = check(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })?;
        // SAFETY: as above.
        Ok(Self { root: unsafe { OwnedFd::from_raw_fd(root as i32) } })
    }

    /// Number of a tracepoint, by which perf events name it.
    pub fn tracepoint(&self, category: &str, name: &str) -> io::Result<u64> {
        let path = std::ffi::CString::new(format!("events/{category}/{name}/id"))?;
        // SAFETY: a descriptor and a string that live; the result is checked.
        let fd = unsafe { libc::openat(self.root.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        check(i64::from(fd))?;
        let mut text = String::new();
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        unsafe { File::from_raw_fd(fd) }.read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
    }
}

/// What to do about an error, where that is known.
fn explained(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let remedy = format!("mount it at {}, or grant CAP_SYS_ADMIN", MOUNTED[0]);
            io::Error::new(error.kind(), format!("not mounted, and mounting it is not permitted: {remedy}"))
        }
        _ => error,
    }
}
