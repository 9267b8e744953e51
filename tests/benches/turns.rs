//! For `cargo xtask bench turns`: loads the kernel programs as the agent does at defaults, and attaches or detaches all of them
//! each time a line on standard input says so. It answers each with an empty line, once that is done.
//!
//! Nobody reads what they count: that is the agent's own time, which `cargo xtask bench agent` measures.

#[path = "common/empty.rs"]
mod empty;

use anyhow::{Context, Result, bail, ensure};
use aya::Btf;
use monitor::{
    config::Config,
    doctor,
    kernel::{
        attach::Loader,
        plan::{self, Hook},
        support::Support,
        syscall,
    },
    source::Source,
};
use std::{
    ffi::CString,
    io::{self, Write as _},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// A loaded program, and where it belongs.
struct Loaded {
    program: OwnedFd,
    hook: Hook,
}

fn main() -> Result<()> {
    let config = Config::default();
    let support = doctor::examine_fields(&config)?;
    let arguments: Vec<String> = std::env::args().collect();
    let only = arguments.iter().position(|argument| argument == "--only").and_then(|at| arguments.get(at + 1));
    let mut programs = load(&config, &support, only.map(String::as_str))?;
    if arguments.iter().any(|argument| argument == "--empty") {
        let btf = Btf::from_sys_fs()?;
        programs.iter_mut().try_for_each(|one| one.be_empty(&btf))?;
    }
    let mut attached = Vec::new();
    println!("{} programs", programs.len());
    for line in io::stdin().lines() {
        match line?.as_str() {
            "attach" if !attached.is_empty() => {}
            "attach" => attached = programs.iter().map(|one| one.attach_again(&support)).collect::<Result<_>>()?,
            "detach" => attached.clear(),
            other => bail!("no such command: {other}"),
        }
        // Who measures may have seen enough.
        if writeln!(io::stdout()).and_then(|()| io::stdout().flush()).is_err() {
            break;
        }
    }
    drop(attached);
    Ok(())
}

/// Loads what the agent would, by the rungs that hold here: of all sources, or of one.
fn load(config: &Config, support: &Support, only: Option<&str>) -> Result<Vec<Loaded>> {
    let settings = doctor::settings(config);
    let loader = Loader::new(support, &settings);
    let mut programs = Vec::new();
    for source in Source::ALL.into_iter().filter(|source| only.is_none_or(|name| source.name() == name)) {
        let outcome = loader.attach(&plan::plan(source, &support.facts, &doctor::wish(config, source)));
        let Some(attached) = outcome.attached else { continue };
        for attachment in attached.rung.attachments {
            // An iterator runs once, when it is attached; and some programs a rung does without.
            let is_lasting = !matches!(attachment.hook, Hook::Iterator(_));
            let program = attached.object.program(attachment.program).and_then(|program| program.fd().ok());
            if let Some(program) = program.filter(|_| is_lasting) {
                programs.push(Loaded { program: program.as_fd().try_clone_to_owned()?, hook: attachment.hook });
            }
        }
        // With the object its links go. The programs stay, with their maps.
    }
    ensure!(!programs.is_empty(), "no such source, or none that can be attached here");
    Ok(programs)
}

impl Loaded {
    /// Takes an empty program for the same hook: what is measured then is what the hook costs.
    fn be_empty(&mut self, btf: &Btf) -> Result<()> {
        let (object, name) = empty::load(self.hook, btf)?;
        self.program = object.program(name).context("no program")?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(())
    }

    /// Attaches it, which the kernel refuses until it is done with detaching it.
    fn attach_again(&self, support: &Support) -> Result<Vec<OwnedFd>> {
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            let attached = self.attach(support);
            let is_there = |error: &anyhow::Error| {
                error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
            };
            if Instant::now() > until || !attached.as_ref().is_err_and(is_there) {
                return attached;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Attaches it until the descriptors are dropped.
    fn attach(&self, support: &Support) -> Result<Vec<OwnedFd>> {
        let one = match self.hook {
            Hook::TpBtf(_) | Hook::FExit(_) => self.link(None)?,
            Hook::RawTracepoint(name) => self.link(Some(name))?,
            Hook::SyscallTracepoint(name) => {
                let tracefs = support.tracefs.as_ref().context("no tracing file system")?;
                syscall::attach_tracepoint(tracefs.tracepoint("syscalls", name)?, self.program.as_fd())?
            }
            Hook::PageFaults { period } => {
                let cpus = aya::util::online_cpus().map_err(|(_, error)| error)?;
                let open = |cpu| Ok(syscall::attach_page_faults(period, cpu, self.program.as_fd())?);
                return cpus.into_iter().map(open).collect();
            }
            Hook::Iterator(_) => bail!("an iterator is not attached"),
        };
        Ok(vec![one])
    }

    /// `BPF_RAW_TRACEPOINT_OPEN` of bpf(2). A program that was loaded for a hook needs no name for it.
    fn link(&self, name: Option<&str>) -> Result<OwnedFd> {
        const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
        let name = name.map(CString::new).transpose()?;
        let name = name.as_ref().map_or(0, |name| name.as_ptr() as u64);
        let attributes = [name, self.program.as_raw_fd() as u64];
        // SAFETY: the attributes are as long as is said, and only read.
        let fd =
            unsafe { libc::syscall(libc::SYS_bpf, RAW_TRACEPOINT_OPEN, attributes.as_ptr(), size_of_val(&attributes)) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("cannot attach to {}", self.hook));
        }
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}
