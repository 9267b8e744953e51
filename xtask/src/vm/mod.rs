//! `cargo xtask vm`: the integration tests inside virtual machines, on every kernel and kind of host that the agent claims.

mod apt;
mod cpio;
mod guest;
mod kernels;
mod machine;
mod modules;

use crate::workspace;
use anyhow::{Context, Result, bail};
use guest::{Programs, Step};
use kernels::{Image, Kernel};
use machine::{Boot, Emulator, Report};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

/// Run the integration tests on other kernels, in virtual machines
///
/// Fetches Debian's kernels from the mirror that this machine's apt uses, builds the tests statically, and boots each kernel
/// with QEMU. Needs no root. A kernel that cannot be fetched is reported as not run, and fails the command.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Option<Subcommand>,
    #[command(flatten)]
    matrix: Matrix,
}

#[derive(clap::Subcommand)]
enum Subcommand {
    /// Only fetch the kernels
    Fetch {
        /// Which, separated by commas: 5.10, 6.1, 6.12, 6.18, newest
        #[arg(long, value_delimiter = ',')]
        kernels: Vec<String>,
    },
    /// Boot one kernel with the agent and a shell, for a person
    Shell {
        /// Which: 5.10, 6.1, 6.12, 6.18, newest
        kernel: String,
        /// Kind of host: v2, hybrid or v1
        #[arg(long, default_value = "v2")]
        cgroup: String,
    },
}

#[derive(clap::Args)]
struct Matrix {
    /// Which kernels, separated by commas: 5.10, 6.1, 6.12, 6.18, newest; all when left out
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Virtual machines at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// Processors of each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    smp: u32,
    /// Only the tests whose name contains this
    #[arg(long)]
    test: Option<String>,
    /// Only what shows that each kernel is served at all
    #[arg(long)]
    smoke: bool,
    /// How often to run all of it
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Seconds that one virtual machine may take
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Use the kernels that were fetched before
    #[arg(long)]
    offline: bool,
}

/// A kind of host, made of a kernel's command line, and the tests that belong there.
struct Host {
    name: &'static str,
    words: &'static str,
    /// The kernels it can be made of; all where none is named.
    kernels: &'static [&'static str],
    /// libtest's arguments.
    tests: &'static [&'static str],
}

const HOSTS: [Host; 1] = [Host { name: "v2", words: "vm.cgroup=v2", kernels: &[], tests: &[] }];

pub(crate) fn run(options: &Options) -> Result<()> {
    workspace::require_supported_machine()?;
    let directory = workspace::target_directory()?.join("vm");
    match &options.command {
        Some(Subcommand::Fetch { kernels }) => fetch(&directory, kernels),
        Some(Subcommand::Shell { kernel, cgroup }) => shell(&directory, kernel, cgroup),
        None => matrix(&directory, &options.matrix),
    }
}

fn fetch(directory: &Path, names: &[String]) -> Result<()> {
    let mut missing = 0;
    for (kernel, image) in kernels::fetch(directory, &kernels::named(names)?, false) {
        match image {
            Ok(image) => println!("{:<8} {}", kernel.name, image.version),
            Err(error) => {
                missing += 1;
                println!("{:<8} cannot be had: {error:#}", kernel.name);
            }
        }
    }
    if missing > 0 { bail!("{missing} kernels cannot be had") } else { Ok(()) }
}

fn shell(directory: &Path, kernel: &str, cgroup: &str) -> Result<()> {
    let emulator = Emulator::find(1, Duration::MAX)?;
    let busybox = kernels::require("busybox", "busybox-static")?;
    let mut fetched = kernels::fetch(directory, &kernels::named(&[kernel.to_owned()])?, false);
    let image = fetched.remove(0).1?;
    let words = ["busybox", "sh", "-c", "/bin/busybox --install -s /bin; exec setsid -c sh"];
    let plan =
        [Step { name: "shell", command: words.map(|word| word.replacen("busybox", "/bin/busybox", 1)).to_vec() }];
    let archive = Programs::build()?.archive(&image, &plan, Some(&busybox))?;
    eprintln!("Linux {}; leave with Ctrl-D, or with Ctrl-A x at once", image.version);
    emulator.interact(&Boot {
        vmlinuz: &image.vmlinuz,
        archive: &archive,
        words: &format!("vm.cgroup={cgroup}"),
        plan: &plan,
        directory: &directory.join("run/shell"),
        log: Path::new("/dev/null"),
    })
}

/// One machine of the matrix.
struct Job<'a> {
    image: &'a Image,
    host: &'static Host,
    round: u32,
}

impl Job<'_> {
    fn name(&self) -> String {
        format!("{}-{}", self.image.kernel.name, self.host.name)
    }
}

fn matrix(directory: &Path, options: &Matrix) -> Result<()> {
    let start = Instant::now();
    let emulator = Emulator::find(options.smp, Duration::from_secs(options.timeout))?;
    let wanted = kernels::named(&options.kernels)?;
    let programs = Programs::build()?;
    let fetched = kernels::fetch(directory, &wanted, options.offline);
    let logs = directory.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    println!(
        "virtual machines: {} at a time, {} processors each, {}",
        options.jobs,
        options.smp,
        emulator.accelerator()
    );

    let mut jobs = VecDeque::new();
    for round in 0..options.repeat {
        for (kernel, image) in &fetched {
            let Ok(image) = image else { continue };
            let hosts = HOSTS.iter().filter(|host| host.kernels.is_empty() || host.kernels.contains(&kernel.name));
            jobs.extend(hosts.map(|host| Job { image, host, round }));
        }
    }
    let jobs = Mutex::new(jobs);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for worker in 0..options.jobs {
            let (jobs, failures, programs, emulator, logs) = (&jobs, &failures, &programs, &emulator, &logs);
            scope.spawn(move || {
                while let Some(job) = next(jobs) {
                    let scratch = directory.join(format!("run/{worker}"));
                    let outcome = run_job(&job, options, programs, emulator, &scratch, logs);
                    if !tell(&job, &outcome, logs) {
                        lock(failures).push(job.name());
                    }
                }
            });
        }
    });
    let failed = failures.into_inner().unwrap_or_default();
    let absent: Vec<(&Kernel, &anyhow::Error)> =
        fetched.iter().filter_map(|(kernel, image)| Some((*kernel, image.as_ref().err()?))).collect();
    for (kernel, error) in &absent {
        println!("NOT RUN  {}: {error:#}", kernel.name);
    }
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    match (failed.len(), absent.len()) {
        (0, 0) => Ok(()),
        (failures, absent) => {
            bail!("{failures} virtual machines failed, {absent} kernels were not run; logs in {}", logs.display())
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn next<'a>(jobs: &Mutex<VecDeque<Job<'a>>>) -> Option<Job<'a>> {
    lock(jobs).pop_front()
}

fn run_job(
    job: &Job<'_>,
    options: &Matrix,
    programs: &Programs,
    emulator: &Emulator,
    scratch: &Path,
    logs: &Path,
) -> Result<Report> {
    let plan = plan(job.host, options);
    let archive = programs.archive(job.image, &plan, None)?;
    emulator.run(&Boot {
        vmlinuz: &job.image.vmlinuz,
        archive: &archive,
        words: job.host.words,
        plan: &plan,
        directory: scratch,
        log: &log_file(job, logs),
    })
}

fn log_file(job: &Job<'_>, logs: &Path) -> PathBuf {
    logs.join(format!("{}.log", job.name()))
}

fn plan(host: &Host, options: &Matrix) -> Vec<Step> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let mut tests = words(&["/bin/it", "--test-threads=1"]);
    match &options.test {
        Some(name) => tests.push(name.clone()),
        None => tests.extend(words(host.tests)),
    }
    vec![Step { name: "it", command: tests }]
}

/// Prints what became of a machine; whether it was a success.
fn tell(job: &Job<'_>, outcome: &Result<Report>, logs: &Path) -> bool {
    let name = job.name();
    let round = if job.round > 0 { format!(" (round {})", job.round + 1) } else { String::new() };
    match outcome {
        Ok(report) => {
            let release = report.release.as_deref().unwrap_or("unknown");
            let verdict = if report.failures.is_empty() { "ok      " } else { "FAILED  " };
            println!("{verdict} {name:<16} Linux {release}: {} tests, {:.1} s{round}", report.passed, report.seconds);
            for failure in &report.failures {
                println!("           {failure}");
            }
            if !report.failures.is_empty() {
                println!("           its console: {}", log_file(job, logs).display());
            }
            report.failures.is_empty()
        }
        Err(error) => {
            println!("FAILED   {name}{round}: {error:#}");
            false
        }
    }
}
