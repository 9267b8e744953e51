//! The time series in CSV: one row a tick, in `DIRECTORY/epoch_N.csv`, for a notebook or a spreadsheet.
//!
//! A thread of its own writes, so that a disk that hangs never holds the agent up. What it cannot write is left out and
//! said once; steps and times in the file show the gap.

mod columns;
mod file;

use crate::{config::Csv, model::snapshot::Snapshot};
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
    time::{Duration, SystemTime},
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
    /// Opens the first file and starts the thread that writes. `limits` say when a file makes room for the next.
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    pub fn start(directory: &Path, limits: Csv) -> io::Result<Self> {
        let mut writer = Writer::new(directory.to_owned(), limits);
        writer.file = Some(RowFile::open(directory, NO_EPOCH, writer.columns.header()?)?);
        let (rows, queue) = mpsc::sync_channel::<Arc<Snapshot>>(QUEUE);
        let (ends, ended) = mpsc::channel::<()>();
        thread::Builder::new().name("csv".to_owned()).spawn(move || {
            queue.iter().for_each(|snapshot| writer.take(&snapshot, snapshot.time.wall()));
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
    limits: Csv,
    columns: Columns,
    epoch: u64,
    /// None after an error.
    file: Option<RowFile>,
    left_out: u64,
}

impl Writer {
    fn new(directory: PathBuf, limits: Csv) -> Self {
        Self { directory, limits, columns: Columns::new(), epoch: NO_EPOCH, file: None, left_out: 0 }
    }

    /// Writes the row of a snapshot that was taken at `time`. Where that fails, the next one tries anew.
    fn take(&mut self, snapshot: &Snapshot, time: SystemTime) {
        match self.write(snapshot, time) {
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

    fn write(&mut self, snapshot: &Snapshot, time: SystemTime) -> io::Result<()> {
        self.columns.widen(snapshot);
        let (header, row) = (self.columns.header()?, self.columns.row(snapshot, time)?);
        self.file_for(epoch(snapshot), time, header, row.len())?.append(&row)
    }

    /// The open file, or the next where it is another epoch's, has no room, is old at `time`, or was deleted.
    fn file_for(
        &mut self,
        epoch: u64,
        time: SystemTime,
        header: Vec<u8>,
        row_bytes: usize,
    ) -> io::Result<&mut RowFile> {
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
        let file = if file.has_room(&header, row_bytes, self.limits.max_bytes)? && !self.is_old(&file, time)? {
            file
        } else {
            file.put_aside()?;
            RowFile::open(&self.directory, epoch, header)?
        };
        Ok(self.file.insert(file))
    }

    /// Whether its first row is too old for another one at `time`, whoever wrote it. A row that cannot be read, or is yet to come
    /// by a clock that was set back, is of no age.
    fn is_old(&self, file: &RowFile, time: SystemTime) -> io::Result<bool> {
        if self.limits.max_age.is_zero() {
            return Ok(false);
        }
        let age = columns::time_of(&file.first_row()?).and_then(|first| time.duration_since(first).ok());
        Ok(age.is_some_and(|age| age >= self.limits.max_age))
    }
}

fn epoch(snapshot: &Snapshot) -> u64 {
    snapshot.mark.as_ref().and_then(|mark| mark.epoch).unwrap_or(NO_EPOCH)
}

#[cfg(test)]
mod tests;
