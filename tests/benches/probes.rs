//! `cargo xtask bench probes`: mean run time of every kernel program, next to an empty program on the same hook in the
//! same run. Both are timed by the kernel's own statistics, so their difference is what our code costs per event.
//!
//! Needs root. Prints a table, or with `--json` one JSON document. With `--only SOURCE` just one source is measured.

#[path = "common/empty.rs"]
mod empty;

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FExit, RawTracePoint},
};
use monitor::{
    config::Config,
    doctor,
    kernel::{
        attach::{Attached, Loader},
        plan::{self, Attachment, Hook, Wish},
        program::StatisticsWindow,
        support::Support,
        syscall::{self, ProgramStatistics},
    },
    source::Source,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileExt, OpenOptionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    process::Command,
};

/// Rounds of every workload; the median of their means is told.
const ROUNDS: usize = 7;
/// Threads that read at once, so that the device has always something to do: what an I/O costs matters where there are many.
const READERS: usize = 16;
/// Goals, in nanoseconds above the empty program.
const PAGE_FAULT_GOAL_NS: f64 = 10.0;
const BLOCK_IO_GOAL_NS: f64 = 150.0;
const REQUESTS_GOAL_NS: f64 = 60.0;
/// Turns in one round, half of them over TCP and half over a Unix socket.
const TURNS: usize = 20_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let as_json = arguments.iter().any(|argument| argument == "--json");
    let only = arguments.iter().position(|argument| argument == "--only").and_then(|at| arguments.get(at + 1));
    let sources: Vec<Source> =
        Source::ALL.into_iter().filter(|source| only.is_none_or(|name| source.name() == name)).collect();
    ensure!(!sources.is_empty(), "no source has that name");
    let config = Config::default();
    let support = doctor::examine_fields(&config)?;
    let mut settings = doctor::settings(&config);
    // Nobody reads the rings here: a quarter of this one is never used, which is when its reader would be woken.
    settings.rings.insert(Source::Lifecycle, 8 << 20);
    let loader = Loader::new(&support, &settings);
    let btf = Btf::from_sys_fs().context("this benchmark needs the kernel's BTF")?;
    let _window = StatisticsWindow::open().context("switching on run-time statistics needs CAP_SYS_ADMIN")?;

    let mut probes = Vec::new();
    let mut attached = Vec::new();
    for &source in &sources {
        let plan = plan::plan(source, &support.facts, &Wish::default());
        if plan.too_old {
            eprintln!("{source} is not to be had on this kernel");
            continue;
        }
        let outcome = loader.attach(&plan);
        let Some(source) = outcome.attached else { bail!("{source} cannot be attached: {:?}", outcome.refused) };
        // An iterator runs once, when it is attached.
        let lasting = |attachment: &&Attachment| !matches!(attachment.hook, Hook::Iterator(_));
        for attachment in source.rung.attachments.iter().filter(lasting) {
            probes.push(Probe::new(&source, attachment.program, attachment.hook, &support, &btf)?);
        }
        attached.push(source);
    }

    // The first round is for the caches and the maps; its figures are thrown away.
    for round in 0..=ROUNDS {
        for &source in &sources {
            let mut measured: Vec<_> = probes.iter_mut().filter(|probe| probe.source == source).collect();
            measured.iter_mut().try_for_each(|probe| probe.begin_round())?;
            workload(source)?;
            measured.iter_mut().try_for_each(|probe| probe.end_round(round > 0))?;
        }
    }
    report(&probes, &support, as_json)
}

/// One of our programs and an empty one beside it.
struct Probe {
    source: Source,
    name: &'static str,
    hook: Hook,
    ours: Timed,
    empty: Timed,
    _empty: Empty,
}

/// Statistics of one program, by round.
struct Timed {
    program: OwnedFd,
    before: ProgramStatistics,
    means: Vec<f64>,
    runs: u64,
}

/// Keeps an empty program attached.
struct Empty {
    _object: Ebpf,
    _event: Option<OwnedFd>,
}

impl Probe {
    fn new(source: &Attached, name: &'static str, hook: Hook, support: &Support, btf: &Btf) -> Result<Self> {
        let program = source.object.program(name).context("a program of the rung")?;
        let (empty, empty_program) =
            attach_empty(hook, support, btf).with_context(|| format!("an empty program on {hook}"))?;
        Ok(Self {
            source: source.source,
            name,
            hook,
            ours: Timed::new(program.fd()?.as_fd().try_clone_to_owned()?),
            empty: Timed::new(empty_program),
            _empty: empty,
        })
    }

    fn begin_round(&mut self) -> Result<()> {
        self.ours.begin()?;
        self.empty.begin()
    }

    fn end_round(&mut self, counts: bool) -> Result<()> {
        self.ours.end(counts)?;
        self.empty.end(counts)
    }

    /// Nanoseconds above empty; none where nothing happened.
    fn above_empty(&self) -> Option<f64> {
        Some(self.ours.median()? - self.empty.median()?)
    }
}

impl Timed {
    fn new(program: OwnedFd) -> Self {
        Self { program, before: ProgramStatistics::default(), means: Vec::new(), runs: 0 }
    }

    fn begin(&mut self) -> Result<()> {
        self.before = syscall::program_statistics(self.program.as_fd())?;
        Ok(())
    }

    fn end(&mut self, counts: bool) -> Result<()> {
        let now = syscall::program_statistics(self.program.as_fd())?;
        let runs = now.runs - self.before.runs;
        if counts && runs > 0 {
            self.means.push((now.run_time_ns - self.before.run_time_ns) as f64 / runs as f64);
            self.runs += runs;
        }
        Ok(())
    }

    fn median(&self) -> Option<f64> {
        let mut means = self.means.clone();
        means.sort_by(f64::total_cmp);
        means.get(means.len() / 2).copied()
    }
}

fn attach_empty(hook: Hook, support: &Support, btf: &Btf) -> Result<(Empty, OwnedFd)> {
    let (mut object, name) = empty::load(hook, btf)?;
    let program = object.program_mut(name).context("no program")?;
    let mut event = None;
    match hook {
        Hook::TpBtf(_) => {
            <&mut BtfTracePoint>::try_from(program)?.attach()?;
        }
        Hook::FExit(_) => {
            <&mut FExit>::try_from(program)?.attach()?;
        }
        Hook::RawTracepoint(tracepoint) => {
            <&mut RawTracePoint>::try_from(program)?.attach(tracepoint)?;
        }
        Hook::SyscallTracepoint(tracepoint) => {
            let tracefs = support.tracefs.as_ref().context("no tracing file system")?;
            let id = tracefs.tracepoint("syscalls", tracepoint)?;
            event = Some(syscall::attach_tracepoint(id, program.fd()?.as_fd())?);
        }
        other => bail!("nothing empty is attached to {other}"),
    }
    let program = object.program(name).context("no program")?.fd()?.as_fd().try_clone_to_owned()?;
    Ok((Empty { _object: object, _event: event }, program))
}

/// One round of what a source counts, and as little else as can be.
fn workload(source: Source) -> Result<()> {
    match source {
        Source::PageFault => fault_storm(50_000),
        Source::AddressSpace => address_space_calls(5_000),
        Source::BlockIo => direct_reads(400),
        Source::Requests => turns(),
        Source::Resident => fault_storm(50_000),
        Source::Lifecycle => {
            (0..50).try_for_each(|_| Command::new("/bin/true").status().map(drop)).context("/bin/true")
        }
    }
}

const PAGE: usize = 4096;

fn map(bytes: usize) -> Result<*mut libc::c_void> {
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED { Err(std::io::Error::last_os_error().into()) } else { Ok(memory) }
}

fn fault_storm(pages: usize) -> Result<()> {
    let memory = map(pages * PAGE)?;
    // SAFETY: within the mapping, which nothing else uses.
    unsafe {
        libc::madvise(memory, pages * PAGE, libc::MADV_NOHUGEPAGE);
        for page in 0..pages {
            memory.cast::<u8>().add(page * PAGE).write_volatile(1);
        }
        libc::munmap(memory, pages * PAGE);
    }
    Ok(())
}

fn address_space_calls(count: usize) -> Result<()> {
    for _ in 0..count {
        let memory = map(PAGE)?;
        // SAFETY: the mapping just made; the heap's end is only asked for.
        unsafe {
            let memory = libc::mremap(memory, PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE);
            libc::munmap(memory, 2 * PAGE);
            libc::syscall(libc::SYS_brk, 0);
        }
    }
    (0..50).try_for_each(|_| fork_and_wait())
}

/// A child with a heap of its own, that ends at once.
fn fork_and_wait() -> Result<()> {
    // SAFETY: this program has one thread by now, and the child only ends.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            pid => ensure!(pid > 0 && libc::waitpid(pid, std::ptr::null_mut(), 0) == pid, "cannot fork"),
        }
    }
    Ok(())
}

/// One byte there and one back, as often as is said, over a connection of each kind.
fn turns() -> Result<()> {
    let path = format!("/tmp/monitor-bench-{}", std::process::id());
    let (tcp, unix) = (TcpListener::bind("127.0.0.1:0")?, UnixListener::bind(&path)?);
    let mut client = TcpStream::connect(tcp.local_addr()?)?;
    client.set_nodelay(true)?;
    let (mut server, _) = tcp.accept()?;
    server.set_nodelay(true)?;
    take_turns(&mut client, &mut server)?;
    let mut client = UnixStream::connect(&path)?;
    let (mut server, _) = unix.accept()?;
    std::fs::remove_file(&path)?;
    take_turns(&mut client, &mut server)
}

fn take_turns<T: Read + Write>(client: &mut T, server: &mut T) -> Result<()> {
    let mut byte = [7];
    for _ in 0..TURNS / 2 {
        client.write_all(&byte)?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
    }
    Ok(())
}

/// A file on a disk, deleted at once.
fn disk_file() -> Result<File> {
    let path = format!("/var/tmp/monitor-bench-{}", std::process::id());
    let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[repr(align(4096))]
struct Block([u8; PAGE]);

fn direct_reads(count: u64) -> Result<()> {
    let file = disk_file().context("a file for direct I/O in /var/tmp")?;
    let block = Box::new(Block([7; PAGE]));
    for index in 0..64 {
        file.write_all_at(&block.0, index * 2 * PAGE as u64)?;
    }
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| read(&file, count))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|_| bail!("a reader panicked")))
    })
}

fn read(file: &File, count: u64) -> Result<()> {
    let mut block = Box::new(Block([0; PAGE]));
    for index in 0..count {
        file.read_exact_at(&mut block.0, index % 64 * 2 * PAGE as u64)?;
    }
    Ok(())
}

fn report(probes: &[Probe], support: &Support, as_json: bool) -> Result<()> {
    let found = |name: &str| probes.iter().find(|probe| probe.name == name);
    // What all hooks of the source cost, shared out over the requests that completed: not every one is merged.
    let requests = found("block_io_complete").map_or(0, |probe| probe.ours.runs) as f64;
    let block_io: f64 = probes
        .iter()
        .filter(|probe| probe.source == Source::BlockIo)
        .filter_map(|probe| Some(probe.above_empty()? * probe.ours.runs as f64 / requests))
        .sum();
    // Half of these are the server's, half its client's.
    let above_empty = |name| found(name).and_then(Probe::above_empty);
    let turn = above_empty("requests_received").zip(above_empty("requests_sent"));
    let goals = [
        ("page_fault_user, per fault", above_empty("page_fault_user"), PAGE_FAULT_GOAL_NS),
        ("block_io, all hooks, per I/O", found("block_io_complete").map(|_| block_io), BLOCK_IO_GOAL_NS),
        ("requests, a receive and a send", turn.map(|(received, sent)| received + sent), REQUESTS_GOAL_NS),
    ];
    // Those of sources that were not left out.
    let goals: Vec<_> = goals.into_iter().filter_map(|(name, ns, goal)| Some((name, ns?, goal))).collect();
    if as_json {
        let programs: Vec<_> = probes
            .iter()
            .map(|probe| {
                json!({
                    "program": probe.name, "hook": probe.hook.to_string(), "runs": probe.ours.runs,
                    "mean_ns": probe.ours.median(), "empty_mean_ns": probe.empty.median(), "above_empty_ns": probe.above_empty(),
                })
            })
            .collect();
        let goals: BTreeMap<_, _> = goals
            .iter()
            .map(|&(name, ns, goal)| (name, json!({"ns": ns, "goal_ns": goal, "met": ns <= goal})))
            .collect();
        println!(
            "{:#}",
            json!({"kernel": support.facts.kernel_release, "rounds": ROUNDS, "programs": programs, "goals": goals})
        );
    } else {
        println!("Linux {}, median of {ROUNDS} rounds, nanoseconds per event\n", support.facts.kernel_release);
        println!("{:<28} {:<34} {:>9} {:>8} {:>8} {:>12}", "PROGRAM", "HOOK", "RUNS", "MEAN", "EMPTY", "ABOVE EMPTY");
        let show = |ns: Option<f64>| ns.map_or("-".to_owned(), |ns| format!("{ns:.1}"));
        for p in probes {
            println!(
                "{:<28} {:<34} {:>9} {:>8} {:>8} {:>12}",
                p.name,
                p.hook.to_string(),
                p.ours.runs,
                show(p.ours.median()),
                show(p.empty.median()),
                show(p.above_empty())
            );
        }
        println!();
        for (name, ns, goal) in goals {
            let verdict = if ns <= goal { "met" } else { "not met" };
            println!("{name}: {ns:.1} ns above empty; goal {goal:.0} ns: {verdict}");
        }
    }
    Ok(())
}
