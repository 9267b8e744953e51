//! Everything read at one moment, raw. What comes after it is a pure function of samples.

use crate::{
    cost::Cost,
    coverage::Coverage,
    gpu::GpuReading,
    ids::{CgroupId, DeviceId, ProcessId, ProcessKey, Tgid},
    mark::Mark,
    raw,
    reading::{Readings, Resident},
    tally::Tally,
    time::BootTime,
};
use bytes::Bytes;
use monitor_common::{Owner, address_space, block_io, page_fault, record::Command, requests, resident};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What was read at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// When the reading began.
    pub time: BootTime,
    /// Ring records since the sample before, in order of time.
    pub moments: Vec<Moment>,
    /// The kernel's counters; none where only the rings were emptied.
    #[serde(skip)] // Recorded as what changed in them: `history::counters`.
    pub counters: Option<Counters>,
    /// What had to be looked up because records could not tell.
    pub found: Found,
    /// What was polled; empty between ticks.
    pub readings: Readings,
    /// The last reading of the GPUs; none where they were not looked at.
    pub gpus: Option<Arc<GpuReading>>,
    /// What a training loop told since the sample before.
    pub mark: Option<Mark>,
    /// A process of the tree that the mark is of; none where that is not known, as in recordings of before.
    pub marked: Option<ProcessId>,
    /// Requests that programs counted themselves, since the sample before.
    pub tallies: Vec<Tally>,
    /// Roots of the trees of which the detectors are to forget what they saw.
    pub resets: Vec<ProcessKey>,
    /// What was live, and what was lost.
    pub coverage: Arc<Coverage>,
    /// What the agent itself costs.
    pub cost: Arc<Cost>,
}

/// The kernel's counters, cumulative for as long as a key stays in its map. Empty for sources that are not live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Faults by owner.
    pub page_faults: Vec<(Owner, page_fault::Counts)>,
    /// Address-space calls by owner.
    pub address_spaces: Vec<(Owner, address_space::Totals)>,
    /// Block I/O by owner, device and operation.
    pub block_io: Vec<(block_io::Key, block_io::Totals)>,
    /// Used buckets of latency histograms, by the series in `block_io`.
    pub block_latencies: Vec<(block_io::Bucket, u64)>,
    /// Turns of requests and answers by owner.
    pub requests: Vec<(Owner, requests::Totals)>,
    /// Pages in memory by process, as of their last change; the owners have no cgroup.
    pub resident: Vec<(Owner, resident::Pages)>,
}

/// One ring record, decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// When it happened.
    pub time: BootTime,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// A process was made.
    Fork {
        /// The new process.
        #[serde(with = "raw")]
        child: Owner,
        /// Who made it.
        parent: ProcessId,
        /// The name it inherits.
        command: Command,
    },
    /// A process became another program.
    Exec {
        /// Which.
        #[serde(with = "raw")]
        owner: Owner,
        /// Its new name.
        command: Command,
        /// The first of its arguments, each ended by a NUL.
        arguments: Bytes,
        /// Whether there are more of them.
        cut: bool,
    },
    /// A process's last thread has gone.
    Exit {
        /// Which.
        #[serde(with = "raw")]
        owner: Owner,
        /// As wait(2) gives it.
        wait_status: u32,
        /// Its name at the end.
        command: Command,
    },
    /// The kernel chose a process to kill for want of memory.
    OomVictim {
        /// Which.
        #[serde(with = "raw")]
        owner: Owner,
        /// Its name.
        command: Command,
        /// What it had in memory then; none where the kernel's counters are not known.
        #[serde(default)]
        resident: Option<Resident>,
    },
    /// A process was moved; the owner has the cgroup it is in now.
    Moved(#[serde(with = "raw")] Owner),
    /// A cgroup was made.
    CgroupMade(CgroupId, Arc<str>),
    /// A cgroup was renamed.
    CgroupRenamed(CgroupId, Arc<str>),
    /// A cgroup was removed.
    CgroupRemoved(CgroupId, Arc<str>),
    /// A large or failed call of mmap, munmap, mremap or brk.
    AddressSpace(#[serde(with = "raw")] address_space::Call),
    /// A slow or failed I/O.
    BlockIo(#[serde(with = "raw")] block_io::Completion),
}

/// Answers of /proc, cgroupfs and /sys to what records could not tell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    /// Processes nobody had heard of.
    pub processes: Vec<FoundProcess>,
    /// Processes that had gone without a record.
    pub gone: Vec<ProcessId>,
    /// Cgroups nobody had heard of, parents before children.
    pub cgroups: Vec<(CgroupId, Arc<str>)>,
    /// Cgroups that had gone without a record.
    pub gone_cgroups: Vec<CgroupId>,
    /// Names of block devices.
    pub devices: Vec<(DeviceId, String)>,
    /// Names of containers, and which still have none.
    pub containers: Vec<FoundContainer>,
}

impl Found {
    /// Adds further answers.
    pub fn extend(&mut self, other: Self) {
        self.processes.extend(other.processes);
        self.gone.extend(other.gone);
        self.cgroups.extend(other.cgroups);
        self.gone_cgroups.extend(other.gone_cgroups);
        self.devices.extend(other.devices);
        self.containers.extend(other.containers);
    }
}

/// A process as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundProcess {
    /// Which. Its start time is exact to a clock tick only, unless the kernel's counters had named it.
    pub id: ProcessId,
    /// Its parent now.
    pub parent: Option<Tgid>,
    /// Its name.
    pub command: String,
    /// Its arguments, joined by spaces, at most 256 bytes.
    pub command_line: String,
    /// Path of its cgroup in the hierarchy that is charged.
    pub cgroup_path: Option<String>,
    /// The cgroup that the record or counter which mentioned it has it in; zero where that was none. /proc has newer ones, but
    /// puts what has exited into the root.
    #[serde(default)]
    pub cgroup: CgroupId,
    /// Whether it was still there; else only its id is known.
    pub running: bool,
}

/// What container runtimes and the kubelet tell of a container, in their files or when asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundContainer {
    /// Its id: 64 hexadecimal digits.
    pub id: Arc<str>,
    /// Who runs it, where that was told.
    pub runtime: Option<Runtime>,
    /// Its name: the one given to it, in a pod the one it has in the pod's specification.
    pub name: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The pod's Kubernetes namespace.
    pub namespace: Option<String>,
    /// The pod's unique id.
    pub pod_uid: Option<String>,
    /// The image, as whoever started the container named it.
    pub image: Option<String>,
}

impl FoundContainer {
    /// Whether nothing was found of it.
    pub fn tells_nothing(&self) -> bool {
        *self == Self { id: Arc::clone(&self.id), ..Self::default() }
    }

    /// Fills in what is not known yet.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            id: self.id,
            runtime: self.runtime.or(other.runtime),
            name: self.name.or(other.name),
            pod: self.pod.or(other.pod),
            namespace: self.namespace.or(other.namespace),
            pod_uid: self.pod_uid.or(other.pod_uid),
            image: self.image.or(other.image),
        }
    }
}

/// Who runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// podman.
    Podman,
    /// containerd, used by the kubelet or by nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
}

impl Runtime {
    /// Its name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
        }
    }
}

/// What a model does not know and a sample mentions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// Processes, and the cgroups that they were mentioned with.
    pub processes: Vec<(ProcessId, CgroupId)>,
    /// Cgroups.
    pub cgroups: Vec<CgroupId>,
    /// Block devices.
    pub devices: Vec<DeviceId>,
    /// Containers whose names are due to be looked for, by their ids.
    pub containers: Vec<Arc<str>>,
}

/// Counters that will not change any more and have been taken in: the kernel may forget them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Harvest {
    /// Keys of page faults.
    #[serde(with = "raw::list")]
    pub page_faults: Vec<Owner>,
    /// Keys of address-space calls.
    #[serde(with = "raw::list")]
    pub address_spaces: Vec<Owner>,
    /// Keys of block I/O.
    #[serde(with = "raw::list")]
    pub block_io: Vec<block_io::Key>,
    /// Keys of its latencies.
    #[serde(with = "raw::list")]
    pub block_latencies: Vec<block_io::Bucket>,
    /// Keys of requests.
    #[serde(with = "raw::list")]
    pub requests: Vec<Owner>,
    /// Keys of pages in memory.
    #[serde(with = "raw::list")]
    pub resident: Vec<Owner>,
}

impl Harvest {
    /// Whether there is nothing to forget.
    pub fn is_empty(&self) -> bool {
        let Self { page_faults, address_spaces, block_io, block_latencies, requests, resident } = self;
        let owners = [page_faults, address_spaces, requests, resident];
        owners.iter().all(|owners| owners.is_empty()) && block_io.is_empty() && block_latencies.is_empty()
    }
}
