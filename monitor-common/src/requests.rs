//! Source `requests`: receive-to-send turns on accepted stream sockets.

use crate::Owner;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What one owner received and sent on accepted TCP and Unix stream sockets.
///
/// A turn begins with what is first received after something was sent, or ever, and is answered by what is sent next. So
/// `begun - answered - unanswered` of them are in flight.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Totals {
    /// Turns that were answered: counted for who sends.
    pub answered: u64,
    /// Turns that began: counted for who receives, or for who answers another's.
    pub begun: u64,
    /// Turns that ended without an answer of this owner's: closed, reset, or answered by another process.
    pub unanswered: u64,
    /// Accepted connections that something was first transferred on.
    pub connections: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// The most turns that were ever in flight at once.
    pub peak: u64,
}

const _: () = assert!(size_of::<Totals>() == 7 * 8);

impl Totals {
    /// Turns in flight. The counters are read one after the other, so that it can seem to be less than none.
    pub const fn in_flight(&self) -> u64 {
        self.begun.saturating_sub(self.answered.saturating_add(self.unanswered))
    }
}

/// The counters of one owner, found by its number; account 0 takes what found no room.
///
/// The kernel opens accounts and adds to them; user space closes them when their process has been gone for long enough. Whose
/// it is never changes between the two, so a reader that sees a count sees whose it is.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Account {
    /// What it counts: with its use, the one cache line that a message takes.
    pub totals: Totals,
    /// How often it was closed: another use of it is another account.
    pub usage: u32,
    /// Always 0.
    pub reserved: u32,
    /// Whose it is.
    pub owner: Owner,
    /// Always 0: to a whole cache line.
    pub reserved_to_end: [u64; 5],
}

const _: () = assert!(size_of::<Account>() == 128);

/// What is known of one accepted socket; kept in the kernel only, with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Socket {
    /// Address of the cgroups (`struct css_set`) of who transferred something last. The account is the right one as long as
    /// they are the same, and the process is: looking it up takes seven cache lines more.
    pub cgroups: u64,
    /// Number of the account of who transferred something last; of a turn that is in flight, whose that is.
    pub account: u32,
    /// Which use of the account.
    pub usage: u32,
    /// Process of who transferred something last.
    pub tgid: u32,
    /// One of [`phase`].
    pub phase: u32,
}

const _: () = assert!(size_of::<Socket>() == 24);

/// Where an accepted socket is in its turns.
pub mod phase {
    /// Nothing was transferred yet.
    pub const NEW: u32 = 0;
    /// The last turn was answered, or there was none.
    pub const IDLE: u32 = 1;
    /// Something was received and nothing sent since.
    pub const RECEIVED: u32 = 2;
    /// As before, but then the other end closed: an answer is not to be expected, but counts.
    pub const CLOSED: u32 = 3;
}
