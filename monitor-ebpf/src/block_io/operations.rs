//! Which operation a request is.

use monitor_common::block_io::operation;
use monitor_ebpf::fields::{self, Kernel};

/// `request.cmd_flags`: the operation's bits, and their values (include/linux/blk_types.h).
mod flag {
    pub(super) const OPERATION: u32 = 0xff;
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const FLUSH: u32 = 2;
    pub(super) const DISCARD: u32 = 3;
    pub(super) const SECURE_ERASE: u32 = 5;
}

/// The request's operation: looked up rather than decided, because the verifier follows each way a decision can go through
/// all that comes after it.
#[inline(always)]
pub(crate) unsafe fn operation(request: Kernel) -> u16 {
    // SAFETY: the caller's request; within the table.
    unsafe {
        let flags = request.read::<u32>(&fields::REQUEST_CMD_FLAGS);
        let has_data = request.read::<u32>(&fields::REQUEST_DATA_LEN) != 0;
        let index = (flags & flag::OPERATION) as usize | usize::from(has_data) << 8;
        (&raw const OPERATIONS).cast::<u8>().add(index).read_volatile().into()
    }
}

/// By the kernel's number of the operation, without and with data.
static OPERATIONS: [[u8; 256]; 2] = {
    let mut table = [[operation::OTHER as u8; 256]; 2];
    let mut data = 0;
    while data < 2 {
        table[data][flag::READ as usize] = operation::READ as u8;
        // A write of nothing only asks for the flush that goes before it.
        table[data][flag::WRITE as usize] = if data == 0 { operation::FLUSH as u8 } else { operation::WRITE as u8 };
        table[data][flag::FLUSH as usize] = operation::FLUSH as u8;
        table[data][flag::DISCARD as usize] = operation::DISCARD as u8;
        table[data][flag::SECURE_ERASE as usize] = operation::DISCARD as u8;
        data += 1;
    }
    table
};

/// Whether a request is the block layer's own flush of a device.
#[inline(always)]
pub(crate) fn is_flush(request: Kernel) -> bool {
    // SAFETY: the tracepoint's argument is a request.
    unsafe { request.read::<u32>(&fields::REQUEST_CMD_FLAGS) & flag::OPERATION == flag::FLUSH }
}
