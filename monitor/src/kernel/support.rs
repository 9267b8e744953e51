//! What this host offers, probed once, without side effects: yes, no, or could not tell.

use super::{
    btf::Types,
    layout::{self, RssCounters},
    plan::{self, Hook},
    signature,
    tracefs::Tracefs,
};
use crate::privileges::Lacking;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The answer of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It is there.
    Yes,
    /// It is not.
    No,
    /// Nobody can say before it is tried.
    #[default]
    CouldNotTell,
}

/// The hierarchy whose cgroups everything is charged to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "hierarchy", rename_all = "snake_case")]
pub enum CgroupHierarchy {
    /// The memory controller's own: cgroup v1, or a hybrid host.
    V1 {
        /// Its number, in /proc/cgroups.
        id: u32,
        /// Where it is mounted.
        mount: Option<PathBuf>,
    },
    /// cgroup v2.
    V2 {
        /// Where it is mounted.
        mount: Option<PathBuf>,
    },
}

impl CgroupHierarchy {
    /// Where its directories are.
    pub fn mount(&self) -> Option<&Path> {
        match self {
            Self::V1 { mount, .. } | Self::V2 { mount } => mount.as_deref(),
        }
    }

    /// Its number; cgroup v2's is 0.
    pub fn id(&self) -> u32 {
        match self {
            Self::V1 { id, .. } => *id,
            Self::V2 { .. } => 0,
        }
    }

    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::V1 { .. } => "v1:memory",
            Self::V2 { .. } => "v2",
        }
    }
}

/// Everything the plan is made of.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// As uname gives it.
    pub kernel_release: String,
    /// Version and patch level, for what only the version tells.
    #[serde(skip)]
    pub kernel_version: (u32, u32),
    /// The processor's architecture.
    pub architecture: &'static str,
    /// Whether the kernel shows its types.
    pub btf: Presence,
    /// Why field offsets could not be found, where that is so.
    pub fields_missing: Option<String>,
    /// Whether programs may ask for the running task by type (Linux 5.11).
    pub task_helper: Presence,
    /// Whether they may ask for a task's registers (Linux 5.15).
    pub registers_helper: Presence,
    /// Whether the registers that a task entered the kernel with are found, by helper or on its stack.
    pub entry_registers: Presence,
    /// Whether the tracing file system is to be had, and else why not.
    pub tracefs: Result<(), String>,
    /// Whether the kernel tells of pressure (PSI), and else why not.
    pub pressure: Result<(), String>,
    /// How it counts resident memory; none where that is not known.
    #[serde(skip)]
    pub rss: Option<RssCounters>,
    /// Processors on line.
    #[serde(skip)]
    pub online_cpus: usize,
    /// Whom everything is charged to.
    pub cgroup: CgroupHierarchy,
    /// Whether the I/O controller is in the cgroup v2 hierarchy.
    pub io_on_v2: bool,
    /// Processors that could ever come on line: what per-CPU maps are made for.
    pub possible_cpus: usize,
    /// Capabilities that loading or attaching needs and this process lacks.
    pub missing_capabilities: Vec<&'static str>,
    /// Capabilities that it does without, and what that costs.
    pub lacking_capabilities: Vec<Lacking>,
    /// Every place where a program could be attached.
    #[serde(serialize_with = "hooks_by_name")]
    pub hooks: BTreeMap<Hook, Presence>,
    /// What arguments those have that differ from kernel to kernel, as far as these are known.
    pub arguments: BTreeMap<&'static str, String>,
    /// Those whose arguments are not the ones the programs know, with what they are.
    #[serde(serialize_with = "hooks_by_name")]
    pub changed: BTreeMap<Hook, String>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            kernel_release: String::new(),
            kernel_version: (0, 0),
            architecture: std::env::consts::ARCH,
            btf: Presence::CouldNotTell,
            fields_missing: None,
            task_helper: Presence::CouldNotTell,
            registers_helper: Presence::CouldNotTell,
            entry_registers: Presence::CouldNotTell,
            tracefs: Ok(()),
            pressure: Ok(()),
            rss: None,
            online_cpus: 1,
            cgroup: CgroupHierarchy::V2 { mount: None },
            io_on_v2: false,
            possible_cpus: 1,
            missing_capabilities: Vec::new(),
            lacking_capabilities: Vec::new(),
            hooks: BTreeMap::new(),
            arguments: BTreeMap::new(),
            changed: BTreeMap::new(),
        }
    }
}

impl Facts {
    /// Whether a hook is there.
    pub fn hook(&self, hook: Hook) -> Presence {
        self.hooks.get(&hook).copied().unwrap_or_default()
    }

    /// Whether programs may ask for the running task and its registers by type.
    pub fn has_typed_helpers(&self) -> bool {
        self.task_helper == Presence::Yes && self.registers_helper == Presence::Yes
    }
}

/// What probing leaves behind for attaching.
pub struct Support {
    /// The facts.
    pub facts: Facts,
    /// Load-time constants of the kernel programs; empty where `facts.fields_missing`.
    pub constants: Vec<layout::Constant>,
    /// The tracing file system, where it is to be had.
    pub tracefs: Option<Tracefs>,
    /// When all programs are surely attached, monotonic nanoseconds: what began before is nobody's loss.
    pub attached_by_ns: u64,
}

/// How long probing and attaching take at most.
const ATTACHING_NS: u64 = 5_000_000_000;

/// Probes this host.
pub fn probe() -> Support {
    let kernel_release = read_trimmed("/proc/sys/kernel/osrelease");
    let tracefs = Tracefs::open();
    let types = Types::running();
    let (cgroup, io_on_v2) = cgroup_hierarchy();
    let mut facts = Facts {
        kernel_version: version(&kernel_release),
        kernel_release,
        btf: if types.is_ok() { Presence::Yes } else { Presence::No },
        tracefs: tracefs.as_ref().map(drop).map_err(|error| error.to_string()),
        pressure: pressure(),
        cgroup,
        io_on_v2,
        possible_cpus: possible_cpus(),
        online_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        missing_capabilities: missing_capabilities(),
        ..Facts::default()
    };
    let mut constants = Vec::new();
    match &types {
        Ok(types) => {
            let helper = |name: &str| match types.enum_value("bpf_func_id", name) {
                Some(_) => Presence::Yes,
                None => Presence::No,
            };
            facts.task_helper = helper("BPF_FUNC_get_current_task_btf");
            facts.registers_helper = helper("BPF_FUNC_task_pt_regs");
            facts.rss = RssCounters::find(types);
            facts.arguments = signature::variants(types);
            facts.changed = plan::hooks().filter_map(|hook| changed(types, hook)).collect();
            match layout::constants(types, &facts) {
                Ok(found) => constants = found,
                Err(missing) => facts.fields_missing = Some(missing.to_string()),
            }
        }
        Err(error) => facts.fields_missing = Some(format!("field offsets are not known: {error}")),
    }
    let tracefs = tracefs.ok();
    facts.hooks = plan::hooks().map(|hook| (hook, presence(hook, types.as_ref().ok(), tracefs.as_ref()))).collect();
    Support { facts, constants, tracefs, attached_by_ns: monotonic_ns() + ATTACHING_NS }
}

/// Some kernels show the files and refuse to read them.
fn pressure() -> Result<(), String> {
    const FILE: &str = "/proc/pressure/memory";
    fs::read(FILE)
        .map(drop)
        .map_err(|error| format!("{FILE}: {error}; psi=1 on the kernel's command line switches it on"))
}

/// The clock that the block layer stamps its requests with.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec, a clock that every kernel has.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A hook that has other arguments than the programs know, with these.
fn changed(types: &Types, hook: Hook) -> Option<(Hook, String)> {
    let arguments = signature::arguments(types, hook)?;
    (!signature::is_known(hook, &arguments)).then(|| (hook, arguments.join(", ")))
}

fn presence(hook: Hook, types: Option<&Types>, tracefs: Option<&Tracefs>) -> Presence {
    let known = |found: Option<bool>| match found {
        Some(true) => Presence::Yes,
        Some(false) => Presence::No,
        None => Presence::CouldNotTell,
    };
    match hook {
        Hook::TpBtf(name) => known(Some(types.is_some_and(|types| types.tracepoint_arguments(name).is_some()))),
        Hook::RawTracepoint(name) => known(types.map(|types| types.tracepoint_arguments(name).is_some())),
        Hook::FExit(name) => known(Some(types.is_some_and(|types| types.function_arguments(name).is_some()))),
        Hook::Iterator(kind) => {
            known(Some(types.is_some_and(|types| types.function_arguments(&format!("bpf_iter_{kind}")).is_some())))
        }
        Hook::PageFaults { .. } => Presence::CouldNotTell,
        Hook::SyscallTracepoint(name) => match tracefs.map(|tracefs| tracefs.tracepoint("syscalls", name)) {
            Some(Ok(_)) => Presence::Yes,
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Presence::CouldNotTell,
            _ => Presence::No,
        },
    }
}

/// The hierarchy to charge, and whether the I/O controller is in cgroup v2.
fn cgroup_hierarchy() -> (CgroupHierarchy, bool) {
    let controllers = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse_cgroup_hierarchy(&controllers, &mounts)
}

fn parse_cgroup_hierarchy(controllers: &str, mounts: &str) -> (CgroupHierarchy, bool) {
    let hierarchy_of = |controller: &str| {
        controllers.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            (fields.next()? == controller).then(|| fields.next()?.parse::<u32>().ok())?
        })
    };
    let cgroup = match hierarchy_of("memory") {
        Some(id) if id != 0 => CgroupHierarchy::V1 { id, mount: mount_of(mounts, "cgroup", Some("memory")) },
        _ => CgroupHierarchy::V2 { mount: mount_of(mounts, "cgroup2", None) },
    };
    (cgroup, hierarchy_of("blkio").unwrap_or(0) == 0)
}

/// The mount point of a hierarchy's root, from /proc/PID/mountinfo (proc(5)).
fn mount_of(mounts: &str, kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let options = (right.next()? == kind).then(|| right.nth(1))??;
        if controller.is_some_and(|controller| !options.split(',').any(|option| option == controller)) {
            return None;
        }
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next()?, left.next()?);
        (root == "/").then(|| PathBuf::from(mount.replace("\\040", " ")))
    })
}

/// Where a cgroup v1 controller's hierarchy is mounted, or without one, cgroup v2.
pub fn controller_mount(controller: Option<&str>) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mount_of(&mounts, if controller.is_some() { "cgroup" } else { "cgroup2" }, controller)
}

/// Highest CPU number that could come on line, plus one.
fn possible_cpus() -> usize {
    let text = read_trimmed("/sys/devices/system/cpu/possible");
    let last = text.rsplit([',', '-']).next().and_then(|n| n.parse::<usize>().ok());
    last.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |last| last + 1)
}

/// Numbers of capabilities (include/uapi/linux/capability.h).
const CAPABILITIES: [(&str, u32); 3] = [("CAP_PERFMON", 38), ("CAP_BPF", 39), ("CAP_SYS_ADMIN", 21)];

/// CAP_SYS_ADMIN stands for the others, too.
fn missing_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    let has = |number: u32| effective >> number & 1 != 0;
    if has(21) {
        return Vec::new();
    }
    CAPABILITIES
        .iter()
        .filter(|&&(name, number)| name != "CAP_SYS_ADMIN" && !has(number))
        .map(|&(name, _)| name)
        .collect()
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn read_trimmed(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn hooks_by_name<S: serde::Serializer, T: Serialize>(hooks: &BTreeMap<Hook, T>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(hooks.iter().map(|(hook, value)| (hook.to_string(), value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_hybrid_host_charges_the_memory_controllers_hierarchy() {
        let (cgroup, io_on_v2) = parse_cgroup_hierarchy("blkio\t7\t1\t1\nmemory\t4\t16\t1\n", MOUNTS);
        assert_eq!(cgroup, CgroupHierarchy::V1 { id: 4, mount: Some("/sys/fs/cgroup/memory".into()) });
        assert!(!io_on_v2);
    }

    #[test]
    fn a_pure_host_charges_cgroup_v2() {
        let (cgroup, io_on_v2) = parse_cgroup_hierarchy("io\t0\t9\t1\nmemory\t0\t9\t1\n", MOUNTS);
        assert_eq!(cgroup, CgroupHierarchy::V2 { mount: Some("/sys/fs/cgroup/unified".into()) });
        assert!(io_on_v2);
    }

    #[test]
    fn versions_of_distributions_are_read() {
        assert_eq!(version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(version("5.10.0-46-cloud-amd64"), (5, 10));
        assert_eq!(version(""), (0, 0));
    }
}
