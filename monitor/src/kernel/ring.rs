//! Waiting for a ring, and emptying it.

use aya::maps::{Map, MapData, MapError, RingBuf};
use bytes::Bytes;
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    task::{Context, Poll},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Records taken out at once: more than a ring of the default size holds.
const MOST: usize = 16 << 10;

/// One source's ring.
pub struct Ring {
    ring: RingBuf<MapData>,
    /// A descriptor of its own for the runtime to wait on.
    wait: AsyncFd<OwnedFd>,
}

impl Ring {
    /// Takes over a ring-buffer map. Must be called inside the runtime that waits.
    pub fn new(map: MapData) -> io::Result<Self> {
        let fd = map.fd().as_fd().try_clone_to_owned()?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(|error: MapError| io::Error::other(error))?;
        // SAFETY: the descriptor is a ring buffer's, which epoll takes, and it is open for as long as the registration,
        // as that owns it.
        let wait = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { ring, wait })
    }

    /// Ready when the kernel side found the ring filling up; else wakes the task when it does.
    pub fn poll_filling(&self, context: &mut Context<'_>) -> Poll<()> {
        match self.wait.poll_read_ready(context) {
            Poll::Ready(Ok(mut ready)) => {
                ready.clear_ready();
                Poll::Ready(())
            }
            // A runtime that is shutting down wakes nobody; the timer goes on draining.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// Takes out the records, but not more than `MOST` of them: whoever fills a ring as fast as it is emptied must not
    /// keep the agent from everything else.
    pub fn drain(&mut self, mut take: impl FnMut(Bytes)) {
        for _ in 0..MOST {
            let Some(record) = self.ring.next() else { return };
            take(Bytes::copy_from_slice(&record));
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ring").field(&self.wait.as_raw_fd()).finish()
    }
}
