//! The last moments, kept for whoever asks, and handed on to whoever follows.
//!
//! Bounded twice: the log forgets its oldest events, and a follower that does not keep up loses its oldest ones and is
//! told how many. The writer never waits.

use crate::event::Event;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;

/// Events kept where nothing else is said: some 600 KiB of them.
pub const DEFAULT_CAPACITY: usize = 2048;
/// Events a follower may be behind before it loses some.
const FOLLOWER_CAPACITY: usize = 1024;

/// A bounded log of events with any number of followers.
#[derive(Debug)]
pub struct EventLog {
    /// Held while an event is added and sent, so that a reader sees each event either in the log or on its channel.
    recent: Mutex<VecDeque<Arc<Event>>>,
    capacity: usize,
    followers: broadcast::Sender<Arc<Event>>,
}

impl EventLog {
    /// An empty log that keeps the last `capacity` events.
    pub fn new(capacity: usize) -> Self {
        Self { recent: Mutex::new(VecDeque::new()), capacity, followers: broadcast::Sender::new(FOLLOWER_CAPACITY) }
    }

    /// Adds an event and forgets the oldest one when the log is full.
    pub fn push(&self, event: Event) {
        let event = Arc::new(event);
        let mut recent = self.lock();
        recent.push_back(Arc::clone(&event));
        if recent.len() > self.capacity {
            recent.pop_front();
        }
        // An error only says that nobody follows.
        let _ = self.followers.send(event);
    }

    /// The events still kept, oldest first.
    pub fn recent(&self) -> Vec<Arc<Event>> {
        self.lock().iter().cloned().collect()
    }

    /// All events from now on. A receiver that falls behind gets `Lagged` with the number it lost.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.followers.subscribe()
    }

    /// The events still kept and all later ones: none missing between the two, none in both.
    pub fn recent_and_subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let recent = self.lock();
        (recent.iter().cloned().collect(), self.followers.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        // A panic elsewhere leaves a whole queue behind: it is only ever pushed to and popped from.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Kind, ids::CgroupId, time::BootTime};
    use tokio::sync::broadcast::error::TryRecvError;

    fn event(time: u64) -> Event {
        Event { time_ns: BootTime(time), kind: Kind::CgroupMade { id: CgroupId(time), path: "/a".into() } }
    }

    fn times(events: &[Arc<Event>]) -> Vec<u64> {
        events.iter().map(|event| event.time_ns.0).collect()
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let log = EventLog::new(3);
        (0..5).for_each(|time| log.push(event(time)));
        assert_eq!(times(&log.recent()), [2, 3, 4]);
    }

    #[test]
    fn a_slow_follower_is_told_how_many_it_lost() {
        let log = EventLog::default();
        let mut follower = log.subscribe();
        let sent = FOLLOWER_CAPACITY as u64 + 10;
        (0..sent).for_each(|time| log.push(event(time)));
        assert_eq!(follower.try_recv().unwrap_err(), TryRecvError::Lagged(10));
        assert_eq!(follower.try_recv().unwrap().time_ns, BootTime(10));
    }

    #[test]
    fn nothing_is_missing_or_doubled_between_the_log_and_the_channel() {
        const EVENTS: u64 = 800;
        let log = EventLog::new(EVENTS as usize);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..EVENTS).for_each(|time| log.push(event(time))));
            for _ in 0..50 {
                let (recent, mut later) = log.recent_and_subscribe();
                std::thread::yield_now();
                let mut all = times(&recent);
                while let Ok(event) = later.try_recv() {
                    all.push(event.time_ns.0);
                }
                assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>());
            }
        });
    }
}
