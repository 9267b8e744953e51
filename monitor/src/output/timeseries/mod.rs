//! The time series in CSV: one row a tick, in `DIRECTORY/epoch_N.csv`, for a notebook or a spreadsheet.
//!
//! A thread of its own writes, so that a disk that hangs never holds the agent up. What it cannot write is left out and
//! said once; steps and times in the file show the gap.

mod columns;
mod file;

use crate::model::snapshot::Snapshot;
use columns::Columns;
use file::RowFile;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::Duration,
};

/// Rows that may wait for the disk. What finds no room is left out.
const QUEUE: usize = 64;
/// How long the thread may take to write the rest.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// Epoch of what no mark has told an epoch of.
const NO_EPOCH: u64 = 0;

/// A time series that is being written.
#[derive(Debug)]
pub struct TimeSeries {
    rows: SyncSender<Arc<Snapshot>>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
    directory: PathBuf,
    left_out: u64,
}

impl TimeSeries {
    /// Opens the first file and starts the thread that writes. A file reaches at most `max_bytes` before the next begins.
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    pub fn start(directory: &Path, max_bytes: u64) -> io::Result<Self> {
        let mut writer = Writer::new(directory.to_owned(), max_bytes);
        writer.file = Some(RowFile::open(directory, NO_EPOCH, writer.columns.header()?)?);
        let (rows, queue) = mpsc::sync_channel::<Arc<Snapshot>>(QUEUE);
        let (ends, ended) = mpsc::channel::<()>();
        thread::Builder::new().name("csv".to_owned()).spawn(move || {
            queue.iter().for_each(|snapshot| writer.take(&snapshot));
            drop(ends);
        })?;
        Ok(Self { rows, ended, directory: directory.to_owned(), left_out: 0 })
    }

    /// Hands a snapshot over, and never waits.
    pub fn take(&mut self, snapshot: &Arc<Snapshot>) {
        if self.rows.try_send(Arc::clone(snapshot)).is_ok() {
            self.left_out = 0;
            return;
        }
        if self.left_out == 0 {
            log::warn!("rows of {} are left out: the disk does not answer", self.directory.display());
        }
        self.left_out += 1;
    }

    /// Writes what is left.
    pub fn finish(self) {
        drop(self.rows);
        if self.ended.recv_timeout(ENDS_WITHIN) == Err(RecvTimeoutError::Timeout) {
            log::warn!("the last rows of {} are not written: the disk does not answer", self.directory.display());
        }
    }
}

/// The thread's side.
#[derive(Debug)]
struct Writer {
    directory: PathBuf,
    max_bytes: u64,
    columns: Columns,
    epoch: u64,
    /// None after an error.
    file: Option<RowFile>,
    left_out: u64,
}

impl Writer {
    fn new(directory: PathBuf, max_bytes: u64) -> Self {
        Self { directory, max_bytes, columns: Columns::new(), epoch: NO_EPOCH, file: None, left_out: 0 }
    }

    /// Writes a row. Where that fails, the next one tries anew.
    fn take(&mut self, snapshot: &Snapshot) {
        match self.write(snapshot) {
            Ok(()) if self.left_out > 0 => {
                log::info!("rows are written to {} again, {} were left out", self.directory.display(), self.left_out);
                self.left_out = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.left_out == 0 {
                    let directory = self.directory.display();
                    log::warn!("rows of {directory} are left out until it can be written again: {error}");
                }
                self.left_out += 1;
                self.file = None;
            }
        }
    }

    fn write(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.columns.widen(snapshot);
        let (header, row) = (self.columns.header()?, self.columns.row(snapshot)?);
        self.file_for(snapshot, header, row.len())?.append(&row)
    }

    /// The open file, or the next where it is another epoch's, has no room, or was deleted.
    fn file_for(&mut self, snapshot: &Snapshot, header: Vec<u8>, row_bytes: usize) -> io::Result<&mut RowFile> {
        let epoch = epoch(snapshot);
        if self.epoch != epoch {
            self.epoch = epoch;
            self.file = None;
        }
        let kept = match self.file.take() {
            Some(file) if file.is_deleted()? => None,
            file => file,
        };
        let file = match kept {
            Some(file) => file,
            None => RowFile::open(&self.directory, epoch, header.clone())?,
        };
        let file = if file.has_room(&header, row_bytes, self.max_bytes)? {
            file
        } else {
            file.put_aside()?;
            RowFile::open(&self.directory, epoch, header)?
        };
        Ok(self.file.insert(file))
    }
}

fn epoch(snapshot: &Snapshot) -> u64 {
    snapshot.mark.as_ref().and_then(|mark| mark.epoch).unwrap_or(NO_EPOCH)
}

#[cfg(test)]
mod tests;
