//! What could not be kept or matched: counted, and said the first time.

use aya_log_ebpf::warn;
use monitor_ebpf::lose;

/// What found no room.
#[derive(Clone, Copy)]
pub(crate) enum NoRoom {
    Owner,
    Request,
    Latency,
}

/// Counts what found no room, and says so the first time.
#[inline(always)]
pub(crate) fn lose_room(what: NoRoom) {
    block_io_lose_room(what as u32);
}

/// A line of log takes more instructions than all else. So this and [`block_io_lose_match`] are functions of their own, and
/// global ones: those the verifier looks at once, and not again for each way that leads to them.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn block_io_lose_room(what: u32) -> i32 {
    const OWNER: u32 = NoRoom::Owner as u32;
    const REQUEST: u32 = NoRoom::Request as u32;
    if lose(|health| &mut health.map_full) {
        match what {
            OWNER => warn!((), "block_io: no room for another owner, counting for nobody"),
            REQUEST => warn!((), "block_io: no room for another request in flight"),
            _ => warn!((), "block_io: no room for another latency, counting without it"),
        }
    }
    0
}

/// Counts a request of which only one end was seen, and says so the first time.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn block_io_lose_match(flags: u32) -> i32 {
    if lose(|health| &mut health.unmatched) {
        warn!((), "block_io: of a request only one end was seen, operation and flags {:x}", flags);
    }
    0
}
