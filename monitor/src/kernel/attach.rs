//! Carrying out a plan: load an object, attach a rung's programs, step down where the kernel refuses.

use super::{
    accounts::Accounts,
    btf, map, objects,
    plan::{self, Attachment, Hook, Plan, Rung},
    program::LoadedProgram,
    request_accounts::RequestAccounts,
    support::Support,
    syscall,
};
use crate::{
    coverage::{MissingProgram, Refusal},
    source::Source,
};
use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, Endianness,
    maps::MapData,
    programs::{BtfTracePoint, FExit, Iter, PerfEvent, Program, ProgramError, RawTracePoint, TracePoint},
};
use monitor_common::{block_io, limits};
use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// Settings that reach the programs as load-time constants.
#[derive(Clone, Debug)]
pub struct Settings {
    /// From how many bytes on an address-space call is sent.
    pub large_call_bytes: u64,
    /// From how many nanoseconds on an I/O is sent.
    pub slow_io_ns: u64,
    /// Level of the programs' own diagnostics, as aya-log counts: 0 off … 5 trace.
    pub log_level: u8,
    /// Bytes of the rings of those sources that have one.
    pub rings: BTreeMap<Source, u32>,
    /// Owners that the maps of those sources that count have room for.
    pub owners: BTreeMap<Source, u32>,
}

/// Why an object or program could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object's maps.
    #[error("{}", cause(.0))]
    Object(#[from] EbpfError),
    /// A program.
    #[error("{}", cause(.0))]
    Program(#[from] ProgramError),
    /// A program or map that the object should have.
    #[error("the object has no {0}: it is not of this version")]
    Missing(&'static str),
    /// A hook that this kernel does not have as it is known.
    #[error("{0}")]
    Unusable(String),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the verifier says at the end of its log, whatever it found.
const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];

/// The innermost reason: aya's messages name their own types first, the kernel's error last.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let (outer, inner) = (error.to_string(), innermost.to_string());
    // The verifier's log is for developers: it goes to the debug log, its last words to the user.
    if let Some(log) = outer.split_once("Verifier output:").map(|(_, log)| log.trim()) {
        log::debug!("{outer}");
        let is_statistics =
            |line: &&str| STATISTICS.iter().any(|begin| line.starts_with(begin)) || line.trim().is_empty();
        let last = log.lines().rev().find(|line| !is_statistics(line));
        return match last {
            Some(last) => format!("the verifier refused it: {}", last.trim()),
            None => format!("the kernel refused to load it: {}", error_number(error).unwrap_or(inner)),
        };
    }
    if outer.contains(&inner) { outer } else { format!("{outer}: {inner}") }
}

/// The kernel's own error, where there is one.
fn error_number(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    match error.downcast_ref::<ProgramError>()? {
        ProgramError::LoadError { io_error, .. } => Some(io_error.to_string()),
        _ => None,
    }
}

/// A source that counts. Dropping it detaches all its programs.
pub struct Attached {
    /// Which.
    pub source: Source,
    /// How.
    pub rung: &'static Rung,
    /// What is left of the object: maps, programs, links.
    pub object: Ebpf,
    /// Its programs.
    pub programs: Vec<LoadedProgram>,
    /// Programs that the rung does without.
    pub missing: Vec<MissingProgram>,
    _events: Vec<OwnedFd>,
}

impl Attached {
    /// Takes out one of its maps.
    pub fn take_map(&mut self, name: &'static str) -> Result<MapData, LoadError> {
        self.object.take_map(name).and_then(map::data).ok_or(LoadError::Missing(name))
    }
}

/// What became of a plan.
pub struct Outcome {
    /// The source, where a rung was attached.
    pub attached: Option<Attached>,
    /// The rungs that were not, and why.
    pub refused: Vec<Refusal>,
}

/// Loads objects with this host's constants.
pub struct Loader<'a> {
    support: &'a Support,
    settings: &'a Settings,
    /// One for all objects: each would parse the kernel's BTF, in vain.
    objects: RefCell<EbpfLoader<'a>>,
    /// Parsed when the first program needs it: 24 MB, which are given back when this is dropped.
    btf: OnceCell<Option<Btf>>,
}

/// The values of a constant that is a flag.
static FLAG: [u8; 2] = [0, 1];

impl<'a> Loader<'a> {
    /// Sets what is the same for all objects.
    pub fn new(support: &'a Support, settings: &'a Settings) -> Self {
        let mut objects = EbpfLoader::new();
        // No relocations against the kernel's types are left in Rust objects.
        objects.btf(None);
        for (name, value) in &support.constants {
            objects.override_global(name, value, false);
        }
        let cpus = support.facts.possible_cpus as u32;
        objects
            .override_global("LARGE_CALL_BYTES", &settings.large_call_bytes, false)
            .override_global("SLOW_NS", &settings.slow_io_ns, false)
            .override_global("LOADED_NS", &support.attached_by_ns, false)
            .override_global("AYA_LOG_LEVEL", &settings.log_level, false)
            .map_max_entries("AYA_LOGS", limits::LOG_RING_BYTES)
            .map_max_entries("USER_SLOTS", cpus)
            .map_max_entries("KERNEL_SLOTS", cpus)
            .map_max_entries("THREADS", cpus << block_io::THREADS_BITS);
        Self { support, settings, objects: RefCell::new(objects), btf: OnceCell::new() }
    }

    /// What it loads with.
    pub fn support(&self) -> &Support {
        self.support
    }

    /// Creates an object's maps and sets its constants; its programs are still to be loaded. `direct` ones read kernel fields
    /// by plain loads.
    pub fn load(&self, object: &[u8], direct: bool) -> Result<Ebpf, LoadError> {
        let mut objects = self.objects.borrow_mut();
        objects.override_global("DIRECT", &FLAG[usize::from(direct)], false);
        Ok(objects.load(object)?)
    }

    fn load_source(&self, source: Source, direct: bool) -> Result<Ebpf, LoadError> {
        if let Some(&bytes) = self.settings.rings.get(&source) {
            self.objects.borrow_mut().map_max_entries("MOMENTS", bytes);
        }
        if let Some(&owners) = self.settings.owners.get(&source) {
            for &map in owner_maps(source) {
                self.objects.borrow_mut().map_max_entries(map, owners);
            }
        }
        self.load(&objects::of(source), direct)
    }

    fn btf(&self) -> Result<&Btf, LoadError> {
        let parse = || Btf::parse(&btf::vmlinux().ok()?, Endianness::default()).ok();
        self.btf.get_or_init(parse).as_ref().ok_or(LoadError::Missing("kernel type information"))
    }

    /// Tries a plan's rungs until one holds.
    pub fn attach(&self, plan: &Plan) -> Outcome {
        let mut refused = plan.refused.clone();
        for rung in &plan.candidates {
            match self.attach_rung(plan.source, rung) {
                Ok(attached) => return Outcome { attached: Some(attached), refused },
                Err(error) => refused.push(Refusal { rung: rung.name, reason: error.to_string() }),
            }
        }
        Outcome { attached: None, refused }
    }

    fn attach_rung(&self, source: Source, rung: &'static Rung) -> Result<Attached, LoadError> {
        let direct = rung.is_direct(&self.support.facts);
        let mut object = self.load_source(source, direct)?;
        let (mut programs, mut missing, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let mut do_without = |attachment: &Attachment, error: LoadError| {
            if attachment.required {
                return Err(error);
            }
            missing.push(MissingProgram { program: attachment.program, reason: error.to_string() });
            Ok(())
        };
        match source {
            Source::BlockIo => Accounts::hand_out(&object)?,
            Source::Requests => RequestAccounts::hand_out(&object)?,
            _ => {}
        }
        // All are loaded before the first is attached, so that a rung that fails has counted nothing.
        for attachment in rung.attachments {
            self.load_program(&mut object, attachment).or_else(|error| do_without(attachment, error))?;
        }
        for attachment in rung.attachments {
            let program = object.program_mut(attachment.program).ok_or(LoadError::Missing(attachment.program))?;
            // One that is not loaded was done without above.
            let Ok(fd) = program.fd() else { continue };
            let fd = fd.try_clone()?;
            match self.attach_program(program, attachment.hook) {
                Ok(opened) => {
                    events.extend(opened);
                    programs.push(LoadedProgram::new(attachment.program, fd));
                }
                Err(error) => do_without(attachment, error)?,
            }
        }
        Ok(Attached { source, rung, object, programs, missing, _events: events })
    }

    fn load_program(&self, object: &mut Ebpf, attachment: &Attachment) -> Result<(), LoadError> {
        if let Some(reason) = plan::unusable(attachment.hook, &self.support.facts) {
            return Err(LoadError::Unusable(reason));
        }
        let program = object.program_mut(attachment.program).ok_or(LoadError::Missing(attachment.program))?;
        match attachment.hook {
            Hook::TpBtf(name) => <&mut BtfTracePoint>::try_from(program)?.load(name, self.btf()?)?,
            Hook::RawTracepoint(_) => <&mut RawTracePoint>::try_from(program)?.load()?,
            Hook::Iterator(kind) => <&mut Iter>::try_from(program)?.load(kind, self.btf()?)?,
            Hook::FExit(name) => <&mut FExit>::try_from(program)?.load(name, self.btf()?)?,
            Hook::SyscallTracepoint(_) => <&mut TracePoint>::try_from(program)?.load()?,
            Hook::PageFaults { .. } => <&mut PerfEvent>::try_from(program)?.load()?,
        }
        Ok(())
    }

    /// Attaches a loaded program. Links live as long as the object; perf events are handed back to be kept.
    fn attach_program(&self, program: &mut Program, hook: Hook) -> Result<Vec<OwnedFd>, LoadError> {
        // A link's id is its key in the object, which keeps the link; nobody here needs it.
        match hook {
            Hook::TpBtf(_) => <&mut BtfTracePoint>::try_from(program)?.attach().map(|_| ())?,
            Hook::RawTracepoint(name) => <&mut RawTracePoint>::try_from(program)?.attach(name).map(|_| ())?,
            Hook::Iterator(_) => {
                let program = <&mut Iter>::try_from(program)?;
                let link = program.attach()?;
                // Reading runs it; it writes nothing. The link ends with the file.
                let mut file = program.take_link(link)?.into_file().map_err(io::Error::other)?;
                io::copy(&mut file, &mut io::sink())?;
            }
            Hook::FExit(_) => <&mut FExit>::try_from(program)?.attach().map(|_| ())?,
            Hook::SyscallTracepoint(name) => {
                let tracefs = self.support.tracefs.as_ref().ok_or(LoadError::Missing("tracing file system"))?;
                let id = tracefs.tracepoint("syscalls", name)?;
                return Ok(vec![syscall::attach_tracepoint(id, program.fd()?.as_fd())?]);
            }
            Hook::PageFaults { period } => {
                let cpus = aya::util::online_cpus().map_err(|(_, error)| error)?;
                let open =
                    |cpu| syscall::attach_page_faults(period, cpu, program.fd()?.as_fd()).map_err(LoadError::from);
                return cpus.into_iter().map(open).collect();
            }
        }
        Ok(Vec::new())
    }
}

/// The maps of a source that have an entry for each process.
const fn owner_maps(source: Source) -> &'static [&'static str] {
    match source {
        Source::PageFault => &["PAGE_FAULTS"],
        Source::AddressSpace => &["ADDRESS_SPACES", "HEAPS"],
        Source::BlockIo => &["ACCOUNTS", "KEYS", "FREE"],
        Source::Requests => &["ACCOUNTS", "KEYS", "FREE"],
        Source::Resident => &["RESIDENT"],
        Source::Lifecycle => &[],
    }
}
