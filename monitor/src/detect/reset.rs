//! Wishes that what was seen of a process tree be forgotten, such as after a model was loaded anew.

use crate::ids::ProcessKey;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many wait for a tick at most.
const WAITING: usize = 64;

/// Trees that wait for the next tick.
#[derive(Debug, Default)]
pub struct Resets(Mutex<Vec<ProcessKey>>);

impl Resets {
    /// Leaves a wish. Whether there was room for it.
    pub fn post(&self, tree: ProcessKey) -> bool {
        let mut waiting = self.lock();
        let has_room = waiting.contains(&tree) || waiting.len() < WAITING;
        if has_room && !waiting.contains(&tree) {
            waiting.push(tree);
        }
        has_room
    }

    /// All that wait.
    pub fn take(&self) -> Vec<ProcessKey> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ProcessKey>> {
        // Whoever panicked left it whole: it is changed by single calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Tgid;

    #[test]
    fn a_wish_waits_once_and_there_is_an_end_of_room() {
        let resets = Resets::default();
        let key = |tgid| ProcessKey { tgid: Tgid(tgid), start_tick: 0 };
        assert!((0..WAITING as u32).all(|tgid| resets.post(key(tgid))));
        assert!(resets.post(key(0)) && !resets.post(key(WAITING as u32)));
        assert_eq!((resets.take().len(), resets.take().len()), (WAITING, 0));
    }
}
