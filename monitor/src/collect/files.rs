//! Small files of the kernel, read into one buffer that is used again and again.

use super::descriptors;
use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::Path,
    str,
};

/// The largest of them that is read: memory.stat has some 1.5 KiB, /proc/stat some 100 bytes a processor.
const MOST: usize = 256 << 10;

/// The buffer.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    failures: Failures,
    /// Makes a read fail: after so many that do not, with this number.
    #[cfg(test)]
    pub(super) fault: Option<(u32, i32)>,
}

/// What kept files of one subject from being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// There was no descriptor: what was not read may be there.
    pub(super) want: bool,
    /// A file was not there. Perhaps this kernel has none of that name, perhaps its subject has gone.
    pub(super) missing: bool,
    /// A file was there when it was opened, and its subject gone when it was read.
    pub(super) gone: bool,
}

impl Failures {
    fn take_in(&mut self, error: &io::Error) {
        self.want |= descriptors::is_want(error);
        match error.raw_os_error() {
            Some(libc::ENOENT) => self.missing = true,
            _ => self.gone |= descriptors::is_gone(error),
        }
    }
}

impl Buffer {
    /// Begins with another subject: failures so far are forgotten.
    pub(super) fn begin(&mut self) {
        self.failures = Failures::default();
    }

    /// What failed since the last [`Self::begin`].
    pub(super) fn failures(&self) -> Failures {
        self.failures
    }

    /// All of a file. That it has gone is an error like any other: the callers leave out what they cannot read.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<&str> {
        let mut file = self.note(File::open(path))?;
        self.fill(|_, room| file.read(room))
    }

    /// All of an open file, from its beginning.
    pub(super) fn reread(&mut self, file: &File) -> io::Result<&str> {
        self.fill(|offset, room| file.read_at(room, offset))
    }

    /// All that `read` gives: called with an offset and some room until it gives nothing more.
    pub(super) fn fill(&mut self, mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>) -> io::Result<&str> {
        const STEP: usize = 8 << 10;
        #[cfg(test)]
        if let Some(error) = self.injected() {
            return self.note(Err(error));
        }
        let mut length = 0;
        while length < MOST {
            if self.bytes.len() < length + STEP {
                self.bytes.resize(length + STEP, 0);
            }
            match read(length as u64, &mut self.bytes[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.note(Err(error)),
            }
        }
        str::from_utf8(&self.bytes[..length]).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Counts a read towards the one that is to fail, and gives its error when it comes.
    #[cfg(test)]
    fn injected(&mut self) -> Option<io::Error> {
        let (left, number) = self.fault.as_mut()?;
        let error = (*left == 0).then(|| io::Error::from_raw_os_error(*number));
        *left = left.wrapping_sub(1);
        error
    }

    /// Remembers why something failed.
    pub(super) fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.failures.take_in(error))
    }
}

/// The number that a file consists of.
pub(super) fn number(read: io::Result<&str>) -> Option<u64> {
    read.ok()?.trim().parse().ok()
}

/// Calls `take` for each line of the form `name value`.
pub(super) fn each_pair(text: &str, mut take: impl FnMut(&str, u64)) {
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Ok(value) = value.trim().parse() {
            take(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_and_forgotten_with_their_subject() {
        let mut buffer = Buffer::default();
        let mut failures_of = |number| {
            buffer.begin();
            // As if the file had been opened before what it tells of went, or descriptors did.
            let error = buffer.fill(|_, _| Err(io::Error::from_raw_os_error(number))).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(number));
            buffer.failures()
        };
        let none = Failures::default();
        assert_eq!(failures_of(libc::ENODEV), Failures { gone: true, ..none });
        assert_eq!(failures_of(libc::ESRCH), Failures { gone: true, ..none });
        assert_eq!(failures_of(libc::EMFILE), Failures { want: true, ..none });
        assert_eq!(failures_of(libc::EACCES), none);
        assert!(buffer.read(Path::new("/proc/self/no-such-file")).is_err());
        assert_eq!(buffer.failures(), Failures { missing: true, ..none });
        buffer.begin();
        assert_eq!(buffer.read(Path::new("/proc/self/comm")).map(str::is_empty).ok(), Some(false));
        assert_eq!(buffer.failures(), none);
    }
}
