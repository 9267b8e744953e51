//! One file that rows are appended to: it holds whole lines only, begins with the names of its columns, and makes room for
//! a new one when those change or it is large.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// How much of a file's end is looked through at a time for the end of its last whole line.
const BLOCK: u64 = 64 << 10;

/// How much of its first row is looked at: step and time are at most 45 bytes.
const ROW_BEGIN: usize = 64;

/// An open file of rows.
#[derive(Debug)]
pub(super) struct RowFile {
    path: PathBuf,
    file: File,
    header: Vec<u8>,
}

impl RowFile {
    /// Opens `DIRECTORY/epoch_N.csv`: goes on with it where its columns are the same, else puts it aside and begins anew.
    ///
    /// # Errors
    /// It cannot be made or written, is no plain file, or another agent writes it.
    pub(super) fn open(directory: &Path, epoch: u64, header: Vec<u8>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let path = directory.join(format!("epoch_{epoch}.csv"));
        let mut file = open(&path)?;
        cut_torn_line(&mut file)?;
        if !begins_with(&mut file, &header)? {
            put_aside(&path)?;
            file = open(&path)?;
        }
        let mut rows = Self { path, file, header };
        if rows.file.metadata()?.len() == 0 {
            let header = rows.header.clone();
            rows.append(&header)?;
        }
        Ok(rows)
    }

    /// Whether it takes rows of these columns, of this length: else another one is to be opened.
    pub(super) fn has_room(&self, header: &[u8], row_bytes: usize, max_bytes: u64) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        let is_empty = metadata.len() <= self.header.len() as u64;
        let fits = is_empty || metadata.len() + row_bytes as u64 <= max_bytes;
        Ok(self.header == header && fits)
    }

    /// The beginning of its first row, up to [`ROW_BEGIN`] bytes; empty where it has none.
    pub(super) fn first_row(&self) -> io::Result<Vec<u8>> {
        let mut begin = vec![0; ROW_BEGIN];
        let length = self.file.read_at(&mut begin, self.header.len() as u64)?;
        begin.truncate(length);
        Ok(begin)
    }

    /// Whether somebody deleted it: what is written to it is lost.
    pub(super) fn is_deleted(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }

    /// Closes it under another name, for one of the same name to follow.
    pub(super) fn put_aside(self) -> io::Result<()> {
        put_aside(&self.path)
    }

    /// Appends a line by one write(2), or nothing.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        match self.file.write(line) {
            Ok(written) if written == line.len() => Ok(()),
            // A part of it fitted a disk that is full now.
            Ok(_) => self.file.set_len(before).and(Err(io::Error::from_raw_os_error(libc::ENOSPC))),
            Err(error) => Err(error),
        }
    }
}

/// Opens it for appending, for this process alone. Links are not followed: an agent that runs as root must not be led
/// elsewhere.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o644).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file"));
    }
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "another agent writes it"),
        TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

/// Cuts off what follows the last end of a line: a crash or a full disk may have left it.
fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut block = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(begin))?;
        block.clear();
        io::Read::by_ref(file).take(end - begin).read_to_end(&mut block)?;
        if let Some(place) = block.iter().rposition(|byte| *byte == b'\n') {
            end = begin + place as u64 + 1;
            break;
        }
        end = begin;
    }
    if end == length { Ok(()) } else { file.set_len(end) }
}

/// Whether it begins so, or is empty.
fn begins_with(file: &mut File, header: &[u8]) -> io::Result<bool> {
    file.seek(SeekFrom::Start(0))?;
    let mut begin = Vec::new();
    file.take(header.len() as u64).read_to_end(&mut begin)?;
    Ok(begin.is_empty() || begin == header)
}

/// Renames `epoch_3.csv` to `epoch_3.1.csv`, or the first number that is free.
fn put_aside(path: &Path) -> io::Result<()> {
    let free = (1_u32..).map(|number| path.with_extension(format!("{number}.csv"))).find(|path| !path.exists());
    free.map_or(Ok(()), |free| fs::rename(path, free))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = b"step,a\n";

    fn open_in(directory: &Path) -> RowFile {
        RowFile::open(directory, 3, HEADER.to_vec()).unwrap()
    }

    fn read(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join(name)).unwrap()
    }

    #[test]
    fn the_header_is_written_once_and_a_torn_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs");
        open_in(&path).append(b"1,2\n").unwrap();
        OpenOptions::new().append(true).open(path.join("epoch_3.csv")).unwrap().write_all(b"2,").unwrap();
        open_in(&path).append(b"3,4\n").unwrap();
        assert_eq!(read(&path, "epoch_3.csv"), "step,a\n1,2\n3,4\n");
    }

    #[test]
    fn torn_headers_and_long_torn_lines_are_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        for torn in ["step".to_owned(), "x".repeat(3 * BLOCK as usize + 5)] {
            fs::write(directory.path().join("epoch_3.csv"), torn).unwrap();
            drop(open_in(directory.path()));
            assert_eq!(read(directory.path(), "epoch_3.csv"), "step,a\n");
        }
        fs::write(directory.path().join("epoch_3.csv"), "step,a\n".to_owned() + &"x".repeat(2 * BLOCK as usize))
            .unwrap();
        drop(open_in(directory.path()));
        assert_eq!(read(directory.path(), "epoch_3.csv"), "step,a\n");
    }

    #[test]
    fn other_columns_are_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        for number in ["1", "2"] {
            fs::write(directory.path().join("epoch_3.csv"), format!("other\n{number}\n")).unwrap();
            drop(open_in(directory.path()));
            assert_eq!(read(directory.path(), &format!("epoch_3.{number}.csv")), format!("other\n{number}\n"));
            assert_eq!(read(directory.path(), "epoch_3.csv"), "step,a\n");
        }
    }

    #[test]
    fn a_full_or_deleted_file_and_one_of_other_columns_have_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let mut rows = open_in(directory.path());
        assert!(rows.has_room(HEADER, 100, 20).unwrap(), "one row always fits");
        rows.append(b"1,2\n").unwrap();
        assert!(rows.has_room(HEADER, 9, 20).unwrap() && !rows.has_room(HEADER, 10, 20).unwrap());
        assert!(!rows.has_room(b"step,b\n", 1, 20).unwrap());
        fs::remove_file(&rows.path).unwrap();
        assert!(rows.is_deleted().unwrap());
    }

    #[test]
    fn links_and_files_of_another_agent_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _rows = open_in(directory.path());
        let busy = RowFile::open(directory.path(), 3, HEADER.to_vec()).unwrap_err();
        assert_eq!(busy.to_string(), "another agent writes it");
        fs::write(directory.path().join("precious"), "kept").unwrap();
        std::os::unix::fs::symlink("precious", directory.path().join("epoch_4.csv")).unwrap();
        assert!(RowFile::open(directory.path(), 4, HEADER.to_vec()).is_err());
        assert_eq!(read(directory.path(), "precious"), "kept");
    }
}
