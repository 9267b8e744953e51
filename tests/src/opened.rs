//! Which files a process opens and reads, as the kernel tells by fanotify(7), which needs no help from that process.

use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
};

/// Watches /proc and the cgroup hierarchies.
#[derive(Debug)]
pub struct Opened {
    events: File,
    pid: u32,
}

impl Opened {
    /// Watches one process from now on.
    ///
    /// # Errors
    /// The kernel has no fanotify, or not for us.
    pub fn by(pid: u32) -> Result<Self> {
        let class = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_UNLIMITED_QUEUE;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::fanotify_init(class, (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK) as u32) };
        ensure!(fd >= 0, "fanotify_init failed: {}", io::Error::last_os_error());
        // SAFETY: a descriptor that was just made and belongs to nobody else.
        let events = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        for mount in mounts()? {
            let path = CString::new(mount.as_str())?;
            let what = libc::FAN_OPEN | libc::FAN_ACCESS;
            let how = libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT;
            // SAFETY: a C string that lives.
            let result = unsafe { libc::fanotify_mark(events.as_raw_fd(), how, what, libc::AT_FDCWD, path.as_ptr()) };
            ensure!(result == 0, "fanotify_mark of {mount} failed: {}", io::Error::last_os_error());
        }
        Ok(Self { events, pid })
    }

    /// The files that it opened or read since the last call.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&mut self) -> Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            let length = match self.events.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(paths),
                // A file that has gone by now cannot be shown; its event is used up.
                Err(_) => continue,
            };
            let mut rest = &buffer[..length];
            while rest.len() >= size_of::<libc::fanotify_event_metadata>() {
                // SAFETY: as many bytes as it has were just checked to be there; it is made of plain integers.
                let event: libc::fanotify_event_metadata = unsafe { std::ptr::read_unaligned(rest.as_ptr().cast()) };
                if event.fd >= 0 {
                    // SAFETY: a descriptor that came with the event, for us to close.
                    let file = unsafe { OwnedFd::from_raw_fd(event.fd) };
                    if event.pid.unsigned_abs() == self.pid {
                        paths.extend(fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok());
                    }
                }
                ensure!(event.event_len > 0, "an event without a length");
                rest = rest.get(event.event_len as usize..).unwrap_or_default();
            }
        }
    }
}

/// Where /proc and cgroup hierarchies are mounted.
fn mounts() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let of_line = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let fits = matches!(kind.split(' ').next()?, "proc" | "cgroup" | "cgroup2");
        fits.then(|| place.split(' ').nth(4).map(str::to_owned)).flatten()
    };
    let mounts: Vec<String> = text.lines().filter_map(of_line).collect();
    if mounts.is_empty() {
        bail!("neither /proc nor a cgroup hierarchy is mounted");
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_reads_is_seen() {
        let mut opened = Opened::by(std::process::id()).expect("this test needs root");
        fs::read("/proc/loadavg").unwrap();
        assert!(opened.take().unwrap().contains(&PathBuf::from("/proc/loadavg")));
        fs::read("/proc/uptime").unwrap();
        let again = opened.take().unwrap();
        assert!(again.contains(&PathBuf::from("/proc/uptime")) && !again.contains(&PathBuf::from("/proc/loadavg")));
    }
}
