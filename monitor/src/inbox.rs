//! What clients post, waiting for the agent's loop: it is left there without waiting for anybody, and taken all at once. Who leaves
//! it sees to it that no more than so many wait.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Posts of one kind.
#[derive(Debug)]
pub struct Inbox<T>(Mutex<Waiting<T>>);

#[derive(Debug)]
struct Waiting<T> {
    /// In the order in which they came.
    posts: Vec<T>,
    is_closed: bool,
}

/// Why a post is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait already.
    Full,
    /// Nobody will look any more.
    Closed,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self(Mutex::new(Waiting { posts: Vec::new(), is_closed: false }))
    }
}

impl<T> Inbox<T> {
    /// Has `leave` put a post to those that wait, or refuse it.
    ///
    /// # Errors
    /// There is no room, or the agent ends.
    pub fn leave(&self, leave: impl FnOnce(&mut Vec<T>) -> Result<(), Refused>) -> Result<(), Refused> {
        let mut waiting = self.lock();
        if waiting.is_closed { Err(Refused::Closed) } else { leave(&mut waiting.posts) }
    }

    /// All that wait.
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.lock().posts)
    }

    /// From here on nothing is taken.
    pub fn close(&self) {
        self.lock().is_closed = true;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        // Whoever panicked left it whole: it is changed by single calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
