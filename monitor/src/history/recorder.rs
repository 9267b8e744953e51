//! The loop's side of a recording: hands over what the model takes in, and never waits.

use super::{
    Error, Origin, Status,
    frame::RECORDING,
    store::{Limits, Store},
    writer::{Message, Writer},
};
use crate::{
    model::Model,
    sample::{Harvest, Sample},
    time::BootTime,
};
use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

/// Messages that may wait for the disk: some seconds' worth. What finds no room is counted as lost, and the recording goes
/// on with a new chapter.
const QUEUE: usize = 64;
/// How long the thread may take to write the rest.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// A recording that is being made.
pub struct Recorder {
    messages: SyncSender<Message>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
    status: Arc<Status>,
    /// Whether everything since the last checkpoint has been handed over.
    is_whole: bool,
}

impl Recorder {
    /// Opens the file or directory and starts the thread that writes.
    ///
    /// # Errors
    /// The place cannot be written, or is something else than a recording.
    pub fn start(path: &Path, limits: Limits, origin: Origin) -> Result<Self, Error> {
        let store = Store::open(RECORDING, path, limits)?;
        let status = Arc::new(Status::new(path.to_owned()));
        let (messages, queue) = mpsc::sync_channel(QUEUE);
        let (ends, ended) = mpsc::channel::<()>();
        let writer = Writer::new(store, origin, Arc::clone(&status));
        let thread = thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            writer.run(&queue);
            drop(ends);
        });
        let thread = thread.map_err(|source| Error::Write { path: path.to_owned(), source })?;
        log::info!("recording to {}", path.display());
        Ok(Self { messages, ended, thread, status, is_whole: false })
    }

    /// How it is doing.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Begins a chapter if one is due: to be called between two samples, with the model as it is then.
    pub fn begin_chapter_if_due(&mut self, model: &Model) {
        if self.status.take_checkpoint_wish() {
            // Cheap: what is counted is shared, not copied.
            self.is_whole = true;
            self.send(Message::Checkpoint { model: Box::new(model.clone()), time_ns: wall_time_ns(BootTime::now()) });
        }
    }

    /// The model took this in.
    pub fn sample(&mut self, sample: &Arc<Sample>) {
        if !self.send(Message::Sample(Arc::clone(sample))) {
            self.status.lost_sample();
        }
    }

    /// The model forgot this.
    pub fn forgot(&mut self, harvest: Harvest) {
        if !harvest.is_empty() {
            self.send(Message::Forgotten(harvest));
        }
    }

    /// A snapshot was taken, dated `time`.
    pub fn snapshot(&mut self, time: BootTime) {
        self.send(Message::Snapshot { time_ns: wall_time_ns(time) });
    }

    /// Whether it was handed over.
    fn send(&mut self, message: Message) -> bool {
        self.is_whole = self.is_whole && self.messages.try_send(message).is_ok();
        if !self.is_whole {
            self.status.want_checkpoint();
        }
        self.is_whole
    }

    /// Writes what is left, and says what there is.
    pub fn finish(self) {
        let Self { messages, ended, thread, status, .. } = self;
        drop(messages);
        let told = status.told();
        let path = told.path.display();
        if ended.recv_timeout(ENDS_WITHIN) == Err(RecvTimeoutError::Timeout) {
            log::warn!("the end of the recording {path} is not written: the disk does not answer");
            return;
        }
        if thread.join().is_err() {
            log::error!("the recording {path} ended badly");
            return;
        }
        let told = status.told();
        let lost = match told.lost_samples_total {
            0 => String::new(),
            lost => format!(", without {lost} samples that were lost"),
        };
        log::info!("recorded {} snapshots in {} bytes to {path}{lost}", told.snapshots_total, told.bytes_total);
    }
}

/// Wall time of a moment of the boot clock, in nanoseconds since 1970, by what both clocks show now.
fn wall_time_ns(time: BootTime) -> u64 {
    let since = time.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Retention;

    #[test]
    fn a_full_queue_loses_samples_and_goes_on_with_a_chapter() {
        let (messages, queue) = mpsc::sync_channel(QUEUE);
        let status = Arc::new(Status::new("/nowhere".into()));
        let thread = thread::spawn(|| {});
        let mut recorder = Recorder { messages, ended: mpsc::channel().1, thread, status, is_whole: false };
        let model = Model::new(BootTime(0), Retention { keep: Duration::ZERO, limit: 0 }, "v2", Vec::new());
        let sample = Arc::new(Sample::default());
        recorder.begin_chapter_if_due(&model);
        (0..QUEUE + 9).for_each(|_| recorder.sample(&sample));
        recorder.snapshot(BootTime(1));
        assert_eq!(recorder.status().told().lost_samples_total, 10);
        assert!(recorder.status().told().reasons().any(|reason| reason == "recording has lost 10 samples"));
        assert_eq!(queue.try_iter().count(), QUEUE);

        recorder.sample(&sample);
        assert_eq!(queue.try_iter().count(), 0, "nothing may follow a gap but a checkpoint");
        recorder.begin_chapter_if_due(&model);
        recorder.sample(&sample);
        assert!(matches!(queue.try_recv(), Ok(Message::Checkpoint { .. })));
        assert!(matches!(queue.try_recv(), Ok(Message::Sample(_))));
        assert_eq!(recorder.status().told().lost_samples_total, 11);
    }
}
