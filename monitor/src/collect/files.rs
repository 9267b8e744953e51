//! Small files of the kernel, read into one buffer that is used again and again.

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
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// All of a file. That it has gone is an error like any other: the callers leave out what they cannot read.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<&str> {
        let mut file = File::open(path)?;
        self.fill(|_, room| file.read(room))
    }

    /// All of an open file, from its beginning.
    pub(super) fn reread(&mut self, file: &File) -> io::Result<&str> {
        self.fill(|offset, room| file.read_at(room, offset))
    }

    fn fill(&mut self, mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>) -> io::Result<&str> {
        const STEP: usize = 8 << 10;
        let mut length = 0;
        while length < MOST {
            if self.0.len() < length + STEP {
                self.0.resize(length + STEP, 0);
            }
            match read(length as u64, &mut self.0[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        str::from_utf8(&self.0[..length]).map_err(|_| io::ErrorKind::InvalidData.into())
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
