//! Block devices of the tests' own, and what /sys/block says of any.
//!
//! A loop device over a file is a real device with a real queue that nobody else uses, so its books can be compared
//! exactly: the kernel counts requests there by other code than the tracepoints the agent hooks.

use crate::json;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};
use tempfile::{NamedTempFile, TempDir};

/// Requests of the loop driver (linux/loop.h).
const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// Tries to win a free device against somebody else who wants one too.
const TRIES: u32 = 20;

/// A small disk in memory; gone when dropped.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Makes one of so many bytes.
    ///
    /// # Errors
    /// Missing rights.
    pub fn new(bytes: u64) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let target = CString::new(directory.path().as_os_str().as_bytes())?;
        let options = CString::new(format!("size={bytes}"))?;
        // SAFETY: all four texts end in a NUL and outlive the call.
        let result =
            unsafe { libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
        ensure!(result == 0, "cannot mount a tmpfs: {}", io::Error::last_os_error());
        Ok(Self(directory))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let Ok(target) = CString::new(self.path().as_os_str().as_bytes()) else { return };
        // SAFETY: the path ends in a NUL and outlives the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A loop device over a file of zeroes, both gone on drop.
#[derive(Debug)]
pub struct LoopDevice {
    name: String,
    device: File,
    backing: NamedTempFile,
}

impl LoopDevice {
    /// Makes one of so many bytes.
    ///
    /// # Errors
    /// No loop driver, or missing rights.
    pub fn new(bytes: u64) -> Result<Self> {
        let mut backing = NamedTempFile::new_in("/var/tmp").context("cannot make a file in /var/tmp")?;
        io::copy(&mut io::Read::take(io::repeat(0), bytes), backing.as_file_mut()).context("cannot fill the file")?;
        backing.as_file_mut().flush()?;
        backing.as_file().sync_all()?;
        let control = File::open("/dev/loop-control").context("no loop devices: modprobe loop")?;
        for _ in 0..TRIES {
            let number = ioctl(&control, LOOP_CTL_GET_FREE, 0).context("no free loop device")?;
            let name = format!("loop{number}");
            let device = open_device(&name)?;
            match ioctl(&device, LOOP_SET_FD, backing.as_file().as_raw_fd()) {
                Ok(_) => return Ok(Self { name, device, backing }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot set up {name}")),
            }
        }
        bail!("somebody else took every free loop device for {TRIES} times")
    }

    /// Its name in /sys/block.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path in /dev.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// What the kernel says of it.
    ///
    /// # Errors
    /// As [`Stat::of`].
    pub fn stat(&self) -> Result<Stat> {
        Stat::of(&self.name)
    }

    /// Lets every request go through to the disk that its file lies on, past the page cache. Returns that disk's name.
    ///
    /// # Errors
    /// The file lies on no disk, or on a file system that cannot do so.
    pub fn go_to_disk(&self) -> Result<String> {
        ioctl(&self.device, LOOP_SET_DIRECT_IO, 1).with_context(|| format!("no direct I/O below {}", self.name))?;
        disk_of(self.backing.path())
    }

    /// Cuts the file below it without its knowing: it fails to read what lies beyond.
    ///
    /// # Errors
    /// The file system's.
    pub fn truncate_backing(&self, bytes: u64) -> Result<()> {
        self.backing.as_file().set_len(bytes).context("cannot truncate the file below the loop device")
    }

    /// Writes one of its queue's settings in /sys/block.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_queue(&self, setting: &str, value: &str) -> Result<()> {
        let path = format!("/sys/block/{}/queue/{setting}", self.name);
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
    }
}

/// A disk that fails every read.
#[derive(Debug)]
pub struct FaultyDisk {
    name: String,
    _device: Option<LoopDevice>,
}

impl FaultyDisk {
    /// Takes the virtual machine's, which has one; elsewhere makes a loop device whose file is gone. Older kernels' loop
    /// devices read zeroes from that.
    ///
    /// # Errors
    /// As [`LoopDevice::new`].
    pub fn new() -> Result<Self> {
        if let Ok(path) = with_serial("faulty") {
            let name = path.file_name().context("a disk without a name")?.to_string_lossy().into_owned();
            return Ok(Self { name, _device: None });
        }
        let device = LoopDevice::new(1 << 20)?;
        // Once as a whole, so that nothing but the test reads it afterwards.
        device.truncate_backing(0)?;
        Ok(Self { name: device.name().to_owned(), _device: Some(device) })
    }

    /// Its name in /sys/block.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path in /dev.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = ioctl(&self.device, LOOP_CLR_FD, 0) {
            eprintln!("cannot give back {}: {error}", self.name);
        }
    }
}

fn open_device(name: &str) -> Result<File> {
    let path = Path::new("/dev").join(name);
    let device = OpenOptions::new().read(true).write(true).open(&path);
    let device = device.with_context(|| format!("cannot open {}", path.display()))?;
    ensure!(device.metadata()?.file_type().is_block_device(), "{} is not a block device", path.display());
    Ok(device)
}

fn ioctl(file: &File, request: libc::Ioctl, argument: i32) -> io::Result<i32> {
    // SAFETY: the requests used take a plain number, never a pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The counters of /sys/block/NAME/stat that the tests compare (Documentation/admin-guide/iostats.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Reads completed.
    pub read_ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes completed.
    pub write_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Discards completed.
    pub discard_ops: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
    /// Flushes completed.
    pub flush_ops: u64,
}

impl Stat {
    /// Reads them.
    ///
    /// # Errors
    /// No such device.
    pub fn of(name: &str) -> Result<Self> {
        let path = format!("/sys/block/{name}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&text).with_context(|| format!("cannot understand {path}: {text:?}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let field = |index: usize| fields.get(index).copied();
        Some(Self {
            read_ops: field(0)?,
            read_bytes: field(2)? * 512,
            write_ops: field(4)?,
            write_bytes: field(6)? * 512,
            discard_ops: field(11)?,
            discard_bytes: field(13)? * 512,
            flush_ops: field(15)?,
        })
    }

    /// The same counters of a subject, as the agent has them.
    ///
    /// # Errors
    /// One is missing or null.
    pub fn told(subject: &Value) -> Result<Self> {
        let counter = |name: &str| json::count(subject, &format!("block_io.{name}_total"));
        Ok(Self {
            read_ops: counter("read_ops")?,
            read_bytes: counter("read_bytes")?,
            write_ops: counter("write_ops")?,
            write_bytes: counter("write_bytes")?,
            discard_ops: counter("discard_ops")?,
            discard_bytes: counter("discard_bytes")?,
            flush_ops: counter("flush_ops")?,
        })
    }

    /// Whether this is `truth` but for at most so many requests, and so is exact where none was lost.
    pub fn is_but_for(&self, truth: &Self, lost: u64) -> bool {
        let ops = |stat: &Self| [stat.read_ops, stat.write_ops, stat.discard_ops, stat.flush_ops];
        let bytes = |stat: &Self| [stat.read_bytes, stat.write_bytes, stat.discard_bytes];
        let missing: Option<u64> = ops(self).iter().zip(ops(truth)).map(|(told, truth)| truth.checked_sub(*told)).sum();
        let no_more_bytes = bytes(self).iter().zip(bytes(truth)).all(|(told, truth)| *told <= truth);
        missing.is_some_and(|missing| missing <= lost && no_more_bytes && (missing > 0 || self == truth))
    }

    /// What was added since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            read_ops: self.read_ops - before.read_ops,
            read_bytes: self.read_bytes - before.read_bytes,
            write_ops: self.write_ops - before.write_ops,
            write_bytes: self.write_bytes - before.write_bytes,
            discard_ops: self.discard_ops - before.discard_ops,
            discard_bytes: self.discard_bytes - before.discard_bytes,
            flush_ops: self.flush_ops - before.flush_ops,
        }
    }
}

/// Path of the virtio disk with this serial number.
///
/// # Errors
/// There is none: only the virtual machines of `cargo xtask vm` have them.
pub fn with_serial(serial: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/block").context("no block devices")? {
        let name = entry?.file_name();
        let told = fs::read_to_string(Path::new("/sys/block").join(&name).join("serial"));
        if told.is_ok_and(|told| told.trim() == serial) {
            return Ok(Path::new("/dev").join(name));
        }
    }
    bail!("this machine has no disk with the serial number {serial}")
}

/// Name in /sys/block of the disk that a file lies on.
///
/// # Errors
/// The file lies on no disk: on tmpfs, overlayfs or a network.
pub fn disk_of(path: &Path) -> Result<String> {
    let device = fs::metadata(path).with_context(|| format!("no {}", path.display()))?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let link = format!("/sys/dev/block/{major}:{minor}");
    let target = fs::canonicalize(&link).with_context(|| {
        format!("{} lies on no block device: run the tests where /var/tmp is on a disk", path.display())
    })?;
    let disk = if target.join("partition").exists() { target.parent().map(Path::to_owned) } else { Some(target) };
    let name = disk.as_deref().and_then(Path::file_name).with_context(|| format!("{link} leads nowhere"))?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_where_the_kernels_documentation_says() {
        let stat = Stat::parse("4 9 32 5 6 9 16 9 9 8 5 7 9 24 9 3 9\n").unwrap();
        let expected = Stat {
            read_ops: 4,
            read_bytes: 16384,
            write_ops: 6,
            write_bytes: 8192,
            discard_ops: 7,
            discard_bytes: 12288,
            flush_ops: 3,
        };
        assert_eq!(stat, expected);
        assert_eq!(stat.since(&stat), Stat::default());
        let fewer = Stat { read_ops: 3, read_bytes: 12288, ..stat };
        assert!(fewer.is_but_for(&stat, 1) && !fewer.is_but_for(&stat, 0) && !stat.is_but_for(&fewer, 9));
        assert!(stat.is_but_for(&stat, 0) && !Stat { read_bytes: 0, ..stat }.is_but_for(&stat, 5));
        assert_eq!(Stat::parse("1 2 3"), None);
        assert_eq!(Stat::parse("a b"), None);
    }
}
