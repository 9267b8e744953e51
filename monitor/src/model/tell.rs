//! Moments as they are told: with names instead of numbers.

use super::Model;
use crate::{
    decode,
    event::{Event, Kind, Who},
    ids::{CgroupId, DeviceId, ProcessId, Tid},
    sample::{Moment, What},
    tally::Tally,
};
use monitor_common::{Owner, address_space::call, block_io::operation};

impl Model {
    /// The event that a moment is told as.
    pub(super) fn tell(&self, moment: &Moment) -> Event {
        let kind = match &moment.what {
            What::Fork { child, parent, command } => {
                Kind::Fork { who: self.who_is(child, Some(command)), parent_pid: parent.tgid }
            }
            What::Exec { owner, command, arguments, cut } => Kind::Exec {
                who: self.who_is(owner, Some(command)),
                command_line: decode::command_line(arguments, *cut),
            },
            What::Exit { owner, wait_status, command } => {
                let (exit_code, signal) = wait_result(*wait_status);
                Kind::Exit { who: self.who_is(owner, Some(command)), exit_code, signal }
            }
            What::OomVictim { owner, command, resident } => {
                Kind::OomVictim { who: self.who_is(owner, Some(command)), resident: *resident }
            }
            What::Moved(owner) => Kind::Moved { who: self.who_is(owner, None) },
            What::CgroupMade(id, path) => Kind::CgroupMade { id: *id, path: path.clone() },
            What::CgroupRenamed(id, path) => Kind::CgroupRenamed { id: *id, path: path.clone() },
            What::CgroupRemoved(id, path) => Kind::CgroupRemoved { id: *id, path: path.clone() },
            What::AddressSpace(made) => Kind::AddressSpace {
                who: self.who_is(&made.owner, None),
                tid: Tid(made.tid),
                call: call_name(made.header.kind),
                address: made.address,
                bytes: made.bytes,
                error: (made.errno != 0).then(|| errno_name(made.errno)),
            },
            What::BlockIo(done) => Kind::BlockIo {
                who: self.who_is(&done.owner, None),
                device: self.device_name(DeviceId(done.device)),
                operation: operation_name(done.operation),
                sector: done.sector,
                bytes: done.bytes,
                queue_ns: done.queue_ns,
                device_ns: done.device_ns,
                error: (done.status != 0).then(|| block_status_name(done.status)),
            },
        };
        Event { time_ns: moment.time, kind }
    }

    /// The event that requests are told as.
    pub(super) fn tell_tally(&self, owner: &Owner, tally: &Tally) -> Event {
        let (count, labels) = (tally.count, tally.labels.clone());
        Event { time_ns: tally.time, kind: Kind::Requests { who: self.who_is(owner, None), count, labels } }
    }

    fn who_is(&self, owner: &Owner, command: Option<&[u8]>) -> Who {
        let id = ProcessId::from(owner);
        let known = self.processes.find(id);
        Who {
            pid: id.tgid,
            start_time_ns: id.start_ns,
            command: command.map_or_else(|| known.map(|p| p.command.clone()).unwrap_or_default(), decode::command),
            cgroup: self.cgroups.path(CgroupId(owner.cgroup)),
        }
    }

    fn device_name(&self, id: DeviceId) -> String {
        self.devices.find(id).map_or_else(|| id.to_string(), |device| device.name.clone())
    }
}

/// Exit code, or else signal, of a wait status (wait(2)).
fn wait_result(status: u32) -> (Option<u8>, Option<u8>) {
    match status & 0x7f {
        0 => (Some((status >> 8) as u8), None),
        signal => (None, Some(signal as u8)),
    }
}

fn call_name(kind: u32) -> &'static str {
    match kind {
        call::MMAP_ANONYMOUS => "mmap_anonymous",
        call::MMAP_FILE => "mmap_file",
        call::MUNMAP => "munmap",
        call::MREMAP => "mremap",
        _ => "brk",
    }
}

fn operation_name(code: u16) -> &'static str {
    match code {
        operation::READ => "read",
        operation::WRITE => "write",
        operation::FLUSH => "flush",
        operation::DISCARD => "discard",
        _ => "other",
    }
}

/// Names of the errors that these calls give; any other by its number.
fn errno_name(errno: u32) -> String {
    let name = match errno as i32 {
        libc::EPERM => "EPERM",
        libc::EIO => "EIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::ETXTBSY => "ETXTBSY",
        libc::ENOSPC => "ENOSPC",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EREMOTEIO => "EREMOTEIO",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EINTR => "EINTR",
        _ => return format!("errno {errno}"),
    };
    name.to_owned()
}

/// Names of `blk_status_t` (include/linux/blk_types.h); before Linux 5.16 the status was a negative errno.
fn block_status_name(status: u32) -> String {
    if (status as i32) < 0 {
        return errno_name(status.wrapping_neg());
    }
    let name = match status {
        1 => "BLK_STS_NOTSUPP",
        2 => "BLK_STS_TIMEOUT",
        3 => "BLK_STS_NOSPC",
        4 => "BLK_STS_TRANSPORT",
        5 => "BLK_STS_TARGET",
        6 => "BLK_STS_RESV_CONFLICT",
        7 => "BLK_STS_MEDIUM",
        8 => "BLK_STS_PROTECTION",
        9 => "BLK_STS_RESOURCE",
        10 => "BLK_STS_IOERR",
        _ => return format!("blk_status {status}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_told_apart() {
        assert_eq!(wait_result(0), (Some(0), None));
        assert_eq!(wait_result(3 << 8), (Some(3), None));
        assert_eq!(wait_result(9), (None, Some(9)));
        assert_eq!(wait_result(0x80 | 11), (None, Some(11)));
    }

    #[test]
    fn both_forms_of_block_errors_have_names() {
        assert_eq!(block_status_name(10), "BLK_STS_IOERR");
        assert_eq!(block_status_name((-5i32) as u32), "EIO");
        assert_eq!(block_status_name(77), "blk_status 77");
    }
}
