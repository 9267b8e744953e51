//! Ring records into moments: total, bounds-checked, never panicking. What cannot be decoded is counted by the caller.

use crate::{
    ids::{CgroupId, ProcessId, Tgid},
    reading::Resident,
    sample::{Moment, What},
    source::Source,
    time::BootTime,
    units::PAGE,
};
use bytes::Bytes;
use monitor_common::{
    Header,
    address_space::{self, call},
    block_io,
    lifecycle::{ARGUMENTS_BYTES, Cgroup, Exec, Exit, Fork, Moved, OomVictim, UNKNOWN_PAGES, kind},
    resident::{ANON, FILE, KINDS, SHMEM, SWAP},
};
use std::{mem::offset_of, sync::Arc};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The moment a record of a source tells of; none when it is too short, too long or of no known kind.
pub fn moment(source: Source, record: &Bytes) -> Option<Moment> {
    let (header, _) = Header::ref_from_prefix(record).ok()?;
    let what = match source {
        Source::Lifecycle => lifecycle(header.kind, record),
        Source::AddressSpace => match header.kind {
            call::MMAP_ANONYMOUS..=call::BRK => Some(What::AddressSpace(*view::<address_space::Call>(record)?)),
            _ => None,
        },
        Source::BlockIo => match header.kind {
            block_io::SLOW_OR_FAILED => Some(What::BlockIo(*view::<block_io::Completion>(record)?)),
            _ => None,
        },
        Source::PageFault | Source::Requests | Source::Resident => None,
    }?;
    Some(Moment { time: BootTime(header.time_ns), what })
}

fn lifecycle(code: u32, record: &Bytes) -> Option<What> {
    Some(match code {
        kind::FORK => {
            let fork = view::<Fork>(record)?;
            What::Fork {
                child: fork.child,
                parent: ProcessId { tgid: Tgid(fork.parent_tgid), start_ns: fork.parent_start_ns },
                command: fork.command,
            }
        }
        kind::EXEC => {
            let exec = view::<Exec>(record)?;
            let kept = exec.arguments_bytes.min(ARGUMENTS_BYTES as u64) as usize;
            let start = offset_of!(Exec, arguments);
            What::Exec {
                owner: exec.owner,
                command: exec.command,
                arguments: record.slice(start..start + kept),
                cut: exec.arguments_bytes > ARGUMENTS_BYTES as u64,
            }
        }
        kind::EXIT => {
            let exit = view::<Exit>(record)?;
            What::Exit { owner: exit.owner, wait_status: exit.wait_status, command: exit.command }
        }
        kind::OOM_VICTIM => {
            let victim = view::<OomVictim>(record)?;
            What::OomVictim { owner: victim.owner, command: victim.command, resident: resident(victim.pages) }
        }
        kind::MOVED => What::Moved(view::<Moved>(record)?.owner),
        kind::CGROUP_MADE | kind::CGROUP_RENAMED | kind::CGROUP_REMOVED => {
            let cgroup = view::<Cgroup>(record)?;
            let (id, path) = (CgroupId(cgroup.id), path(cgroup)?);
            match code {
                kind::CGROUP_MADE => What::CgroupMade(id, path),
                kind::CGROUP_RENAMED => What::CgroupRenamed(id, path),
                _ => What::CgroupRemoved(id, path),
            }
        }
        _ => return None,
    })
}

/// Pages of a process, in bytes; none unless all are known.
fn resident(pages: [i64; KINDS]) -> Option<Resident> {
    let bytes = pages.map(|pages| pages.max(0) as u64 * PAGE);
    let resident = Resident {
        anon_bytes: bytes[ANON],
        file_bytes: bytes[FILE],
        shmem_bytes: bytes[SHMEM],
        swap_bytes: bytes[SWAP],
    };
    (!pages.contains(&UNKNOWN_PAGES)).then_some(resident)
}

/// A record of exactly the right size.
fn view<T: FromBytes + KnownLayout + Immutable>(record: &Bytes) -> Option<&T> {
    T::ref_from_bytes(record).ok()
}

fn path(cgroup: &Cgroup) -> Option<Arc<str>> {
    let kept = (cgroup.path_bytes as usize).min(cgroup.path.len());
    let text = cgroup.path[..kept].split(|&byte| byte == 0).next()?;
    text.starts_with(b"/").then(|| String::from_utf8_lossy(text).into())
}

/// A name of the kernel's, which ends at the first NUL.
pub fn command(command: &[u8]) -> String {
    String::from_utf8_lossy(command.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// Arguments, each ended by a NUL, as one line; with "…" at its end when there are more of them.
pub fn command_line(arguments: &[u8], cut: bool) -> String {
    let arguments = arguments.strip_suffix(b"\0").unwrap_or(arguments);
    let mut line = String::from_utf8_lossy(arguments).replace('\0', " ");
    if cut {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_common::Owner;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn header(kind: u32) -> Header {
        Header { time_ns: 7, kind, reserved: 0 }
    }

    #[test]
    fn an_exec_keeps_its_arguments() {
        let mut exec = Exec {
            header: header(kind::EXEC),
            owner: Owner { tgid: 5, ..Owner::default() },
            command: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            arguments_bytes: 9,
            arguments: [0xff; ARGUMENTS_BYTES],
        };
        exec.arguments[..9].copy_from_slice(b"sh\0-c\0ls\0");
        let record = Bytes::copy_from_slice(exec.as_bytes());
        let Some(Moment { time: BootTime(7), what: What::Exec { arguments, cut: false, command: name, .. } }) =
            moment(Source::Lifecycle, &record)
        else {
            panic!("not decoded")
        };
        assert_eq!(command_line(&arguments, false), "sh -c ls");
        assert_eq!(command(&name), "sh");
        exec.arguments_bytes = u64::MAX;
        let record = Bytes::copy_from_slice(exec.as_bytes());
        let what = moment(Source::Lifecycle, &record).map(|m| m.what);
        assert!(matches!(what, Some(What::Exec { cut: true, arguments, .. }) if arguments.len() == ARGUMENTS_BYTES));
    }

    #[test]
    fn a_record_of_the_wrong_size_or_kind_is_refused() {
        let exit = Exit { header: header(kind::EXIT), ..Exit::default() };
        let whole = Bytes::copy_from_slice(exit.as_bytes());
        assert!(moment(Source::Lifecycle, &whole).is_some());
        assert!(moment(Source::Lifecycle, &whole.slice(..whole.len() - 1)).is_none());
        assert!(moment(Source::BlockIo, &whole).is_none());
        let strange = Exit { header: header(999), ..Exit::default() };
        assert!(moment(Source::Lifecycle, &Bytes::copy_from_slice(strange.as_bytes())).is_none());
    }

    #[test]
    fn what_a_victim_had_in_memory_is_told_whole_or_not_at_all() {
        let resident = |pages| {
            let victim = OomVictim { header: header(kind::OOM_VICTIM), pages, ..OomVictim::default() };
            let record = Bytes::copy_from_slice(victim.as_bytes());
            match moment(Source::Lifecycle, &record).map(|moment| moment.what) {
                Some(What::OomVictim { resident, .. }) => resident,
                other => panic!("{other:?}"),
            }
        };
        let mut pages = [0; KINDS];
        (pages[FILE], pages[ANON]) = (1, 2);
        let known = Resident { file_bytes: 4096, anon_bytes: 8192, ..Resident::default() };
        assert_eq!(resident(pages), Some(known));
        pages[SWAP] = UNKNOWN_PAGES;
        assert_eq!(resident(pages), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u32..12) {
            if bytes.len() >= 16 {
                bytes[8..12].copy_from_slice(&kind.to_ne_bytes());
            }
            let record = Bytes::from(bytes);
            for source in Source::ALL {
                let _ = moment(source, &record);
            }
        }
    }
}
