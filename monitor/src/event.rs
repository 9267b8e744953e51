//! The moments that matter, named and ready to be told: what `/v1/events` streams.

use crate::{
    ids::{CgroupId, Tgid, Tid},
    reading::Resident,
    time::BootTime,
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// One moment.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When, on the boot clock.
    pub time_ns: BootTime,
    /// What, and of whom.
    #[serde(flatten)]
    pub kind: Kind,
}

/// Whom it happened to.
#[derive(Clone, Debug, Serialize)]
pub struct Who {
    /// The process.
    pub pid: Tgid,
    /// When it started, boot clock.
    pub start_time_ns: u64,
    /// Its name.
    pub command: String,
    /// Its cgroup's path, where known.
    pub cgroup: Option<Arc<str>>,
}

/// What happened. The JSON field `event` names the variant.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Kind {
    /// A process was made.
    Fork {
        /// The new process.
        #[serde(flatten)]
        who: Who,
        /// Who made it.
        parent_pid: Tgid,
    },
    /// A process became another program.
    Exec {
        /// Which, by its new name.
        #[serde(flatten)]
        who: Who,
        /// Its arguments, at most 256 bytes of them.
        command_line: String,
    },
    /// A process has gone.
    Exit {
        /// Which.
        #[serde(flatten)]
        who: Who,
        /// What it returned, unless a signal ended it.
        exit_code: Option<u8>,
        /// The signal that ended it.
        signal: Option<u8>,
    },
    /// The kernel chose a process to kill for want of memory.
    OomVictim {
        /// Which.
        #[serde(flatten)]
        who: Who,
        /// What it had in memory then, where the kernel's counters are known: each kind may be off by `error_bytes` of `resident`.
        resident: Option<Resident>,
    },
    /// A process was moved to another cgroup.
    Moved {
        /// Which, with the cgroup it is in now.
        #[serde(flatten)]
        who: Who,
    },
    /// A cgroup was made.
    CgroupMade {
        /// Its kernfs id.
        id: CgroupId,
        /// Its path.
        path: Arc<str>,
    },
    /// A cgroup was renamed.
    CgroupRenamed {
        /// Its kernfs id.
        id: CgroupId,
        /// Its new path.
        path: Arc<str>,
    },
    /// A cgroup was removed.
    CgroupRemoved {
        /// Its kernfs id.
        id: CgroupId,
        /// The path it had.
        path: Arc<str>,
    },
    /// A large or failed call of mmap, munmap, mremap or brk.
    AddressSpace {
        /// Who called.
        #[serde(flatten)]
        who: Who,
        /// The calling thread.
        tid: Tid,
        /// mmap_anonymous, mmap_file, munmap, mremap or brk.
        call: &'static str,
        /// Where.
        address: u64,
        /// How much; negative when the heap or a mapping became smaller.
        bytes: i64,
        /// Why it failed, by the error's name, or null.
        error: Option<String>,
    },
    /// Something has been out of the ordinary for long enough, has become worse, or is over.
    Alert {
        /// What it is about.
        rule: &'static str,
        /// firing or resolved.
        state: &'static str,
        /// How bad it is, or was at its worst.
        severity: &'static str,
        /// Whom it is about.
        subject: String,
        /// In one line.
        summary: String,
    },
    /// What memory a container, service or process tree should get is something else than before.
    Recommendation {
        /// By which policy.
        policy: &'static str,
        /// As tables call it.
        subject: String,
        /// What it should request.
        request_bytes: u64,
        /// Where its limit should be.
        limit_bytes: u64,
        /// Why, in one line.
        rationale: String,
    },
    /// Requests that a program counted itself.
    Requests {
        /// Who served them.
        #[serde(flatten)]
        who: Who,
        /// How many.
        count: u64,
        /// What was told of them.
        labels: BTreeMap<String, String>,
    },
    /// A slow or failed I/O.
    BlockIo {
        /// Who submitted it.
        #[serde(flatten)]
        who: Who,
        /// The device's name.
        device: String,
        /// read, write, flush, discard or other.
        operation: &'static str,
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// Bytes transferred.
        bytes: u64,
        /// Waiting to be issued.
        queue_ns: u64,
        /// From issue to completion.
        device_ns: u64,
        /// Why it failed, by the status's name, or null.
        error: Option<String>,
    },
}
