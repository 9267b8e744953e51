//! `cargo xtask vm`: the integration tests inside virtual machines, on every kernel and kind of host that the agent claims.

mod apt;
mod cpio;
mod guest;
mod kernels;
mod machine;
mod modules;
mod table;

use crate::workspace;
use anyhow::{Context, Result, bail};
use guest::{Programs, Step};
use kernels::{Image, Kernel};
use machine::{Boot, Emulator, Report};
use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
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
        #[arg(long, default_value = "v2", value_parser = ["v2", "hybrid", "v1"])]
        cgroup: String,
    },
}

#[derive(clap::Args)]
struct Matrix {
    /// Which kernels, separated by commas: 5.10, 6.1, 6.12, 6.18, newest; all when left out
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Which kinds of hosts, separated by commas: v2, smp (two processors), hybrid, v1, bare (no PSI, no tracefs), no-btf; all when
    /// left out, with --smoke v2 and those that lack something, and v2 alone with --test and --exec
    #[arg(long, value_delimiter = ',', value_parser = HOSTS.map(|host| host.name))]
    hosts: Vec<String>,
    /// Virtual machines at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// Processors of each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    smp: u32,
    /// Only the tests whose name contains this
    #[arg(long)]
    test: Option<String>,
    /// Run this command instead of the tests, such as "RUST_LOG=debug monitor doctor", and print the console
    #[arg(long, conflicts_with_all = ["test", "smoke"])]
    exec: Option<String>,
    /// Only what shows that each kernel is served at all
    #[arg(long)]
    smoke: bool,
    /// How often to run all of it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Seconds that one virtual machine may take; 2700 when left out, 900 with --smoke
    #[arg(long)]
    timeout: Option<u64>,
    /// Write what was found into the README's table of kernels
    #[arg(long, conflicts_with_all = ["kernels", "hosts", "test", "exec"])]
    readme: bool,
    /// Use the kernels that were fetched before
    #[arg(long)]
    offline: bool,
}

impl Matrix {
    /// Whether nothing narrows down what runs on each machine.
    fn runs_all_tests(&self) -> bool {
        self.test.is_none() && self.exec.is_none() && !self.smoke
    }
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

impl Host {
    /// Whether it can be made of a kernel.
    fn is_made_of(&self, kernel: &Kernel) -> bool {
        self.kernels.is_empty() || self.kernels.contains(&kernel.name)
    }

    /// Whether it is there for one test alone, of what is done without.
    fn lacks_something(&self) -> bool {
        matches!(self.tests, [only] if only.starts_with(CRIPPLED))
    }
}

/// The tests of hosts that lack something.
const CRIPPLED: &str = "vm::crippled";

/// What a host of each kind is made of by the first process (tests/src/bin/vm-init.rs) and the kernel itself.
const HOSTS: [Host; 6] = [
    Host { name: "v2", words: "vm.cgroup=v2", kernels: &[], tests: OF_ALL_KINDS },
    Host { name: "smp", words: "vm.cgroup=v2", kernels: OLDEST_AND_NEWEST, tests: WHERE_PROCESSORS_MATTER },
    Host { name: "hybrid", words: "vm.cgroup=hybrid", kernels: WITH_MEMORY_V1, tests: WHERE_CGROUPS_MATTER },
    Host { name: "v1", words: "vm.cgroup=v1", kernels: WITH_MEMORY_V1, tests: WHERE_CGROUPS_MATTER },
    Host { name: "bare", words: "vm.cgroup=v2 psi=0 vm.tracefs=no", kernels: &[], tests: &["vm::crippled::bare"] },
    Host { name: "no-btf", words: "vm.cgroup=v2 vm.btf=no", kernels: &[], tests: &["vm::crippled::no_btf"] },
];

const OF_ALL_KINDS: &[&str] = &["--skip", CRIPPLED];
/// What is the agent's own doing, whatever the kernel: done on the oldest and the newest, where it would show if it were not so.
const OF_USER_SPACE: &[&str] = &[
    "advice::",
    "command_line::",
    "container::",
    "descriptors::",
    "marks::",
    "recording::",
    "resources::",
    "socket::",
    "workload_socket::",
];

/// Debian builds its later kernels without version 1 of the memory controller.
const WITH_MEMORY_V1: &[&str] = &["5.10", "6.1"];
const WHERE_CGROUPS_MATTER: &[&str] = &[
    "cgroup::",
    "lifecycle::the_victim",
    "lifecycle::a_process",
    "oom::",
    "page_fault::faults_of",
    "snapshot::",
    "usage::",
    "vm::churn",
    "vm::rungs::lives",
];
/// What two processors count apart is added up by the agent, whatever the kernel.
const OLDEST_AND_NEWEST: &[&str] = &["5.10", "newest"];
/// The host of that name has two.
const WHERE_PROCESSORS_MATTER: &[&str] = &[
    "page_fault::totals_of_two",
    "page_fault::faults_of_threads",
    "block_io::direct_io_on_a_busy",
    "block_io::each_of_several",
    "vm::rungs::page_faults",
    "vm::rungs::block_io",
];
/// Shows that a kernel is served at all: every rung loads, attaches and tells the same as the others and the workload.
const SMOKE: &[&str] = &[
    "vm::kernel::every_source",
    "vm::kernel::every_function",
    "vm::rungs",
    "cgroup::a_process_that_moves",
    "requests::turns_over_tcp",
];

pub(crate) fn run(options: &Options) -> Result<()> {
    workspace::require_supported_machine()?;
    let directory = workspace::target_directory()?.join("vm");
    let _lock = lock_directory(&directory)?;
    match &options.command {
        Some(Subcommand::Fetch { kernels }) => fetch(&directory, kernels),
        Some(Subcommand::Shell { kernel, cgroup }) => shell(&directory, kernel, cgroup),
        None => matrix(&directory, &options.matrix),
    }
}

/// Two at a time would take each other's disks away.
fn lock_directory(directory: &Path) -> Result<File> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let lock = File::create(directory.join("lock")).context("cannot make a lock file")?;
    if lock.try_lock().is_err() {
        bail!("another `cargo xtask vm` is at work in {}: wait for it, or end it", directory.display());
    }
    Ok(lock)
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
    let emulator = Emulator::find(Duration::MAX)?;
    let busybox = kernels::require("busybox", "busybox-static")?;
    let mut fetched = kernels::fetch(directory, &kernels::named(&[kernel.to_owned()])?, false);
    let image = fetched.remove(0).1?;
    if kernels::is_dynamic(&busybox)? {
        bail!("{} needs libraries; `apt-get install busybox-static` brings one that does not", busybox.display());
    }
    let words = ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; exec setsid -c sh"];
    let plan = [Step { name: "shell", command: words.map(str::to_owned).to_vec() }];
    let archive = Programs::build()?.archive(&image, &plan, Some(&busybox))?;
    eprintln!("Linux {}; leave with Ctrl-D, or with Ctrl-A x at once", image.version);
    emulator.interact(&Boot {
        vmlinuz: &image.vmlinuz,
        archive: &archive,
        words: &format!("vm.cgroup={cgroup} vm.kernel={kernel}"),
        processors: 2,
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
    fn kernel(&self) -> &'static str {
        self.image.kernel.name
    }

    /// Whether it does without the tests of what is the agent's own doing.
    fn is_spared_user_space(&self, options: &Matrix) -> bool {
        options.runs_all_tests() && self.host.tests == OF_ALL_KINDS && self.image.kernel.is_between()
    }

    fn name(&self) -> String {
        format!("{}-{}", self.kernel(), self.host.name)
    }
}

/// A kernel, and whether it is here.
type Fetched = (&'static Kernel, Result<Image>);
/// How the machine with that kernel ended.
type Ended = (&'static str, Result<Report>);

fn matrix(directory: &Path, options: &Matrix) -> Result<()> {
    let start = Instant::now();
    let limit = options.timeout.unwrap_or(if options.smoke { 900 } else { 2700 });
    let emulator = Emulator::find(Duration::from_secs(limit))?;
    let wanted = kernels::named(&options.kernels)?;
    let programs = Programs::build()?;
    check_filters(&programs.tests()?)?;
    let fetched = kernels::fetch(directory, &wanted, options.offline);
    let logs = directory.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let (at_a_time, processors) = (options.jobs, options.smp);
    println!("virtual machines: {at_a_time} at a time, {processors} processors each, {}", emulator.accelerator());

    let jobs = jobs(&fetched, options);
    if jobs.is_empty() && fetched.iter().any(|(_, image)| image.is_ok()) {
        let kernels = |host: &Host| format!("{} of {}", host.name, host.kernels.join(" and "));
        let some = HOSTS.iter().filter(|host| !host.kernels.is_empty()).map(kernels).collect::<Vec<_>>();
        bail!("no virtual machine fits: some kinds of hosts are made of some kernels only: {}", some.join(", "));
    }
    tell_left_out(&wanted, &jobs, options);
    let ended = work(jobs, options, |job, worker| {
        let scratch = directory.join(format!("run/{worker}"));
        let outcome = run_job(job, options, &programs, &emulator, &scratch, &logs);
        if options.exec.is_some() {
            print!("{}", fs::read_to_string(log_file(job, &logs)).unwrap_or_default());
        }
        tell(job, &outcome, &logs);
        outcome
    });
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    judge(&fetched, &ended, &logs)?;
    let rows = rows(&ended);
    let mute = mute(&fetched, &rows, options);
    if !mute.is_empty() {
        bail!("the tests on {} did not tell which rungs hold, which the README's table is made of", mute.join(", "));
    }
    if options.readme { table::write(&rows, kernels::KERNELS.len()) } else { table::check(&rows) }
}

/// Every name by which tests are chosen or left out is that of some test: one that was renamed must not go unnoticed.
fn check_filters(tests: &[String]) -> Result<()> {
    let all = HOSTS.iter().flat_map(|host| host.tests).chain(OF_USER_SPACE).chain(SMOKE);
    for name in all.filter(|name| !name.starts_with("--")) {
        if !tests.iter().any(|test| test.contains(name)) {
            bail!("xtask/src/vm/mod.rs chooses tests by {name:?}, but none has such a name");
        }
    }
    Ok(())
}

/// Says which hosts that were asked for by name there are none of, and which tests some kernels are spared.
fn tell_left_out(kernels: &[&Kernel], jobs: &VecDeque<Job<'_>>, options: &Matrix) {
    let spared: BTreeSet<_> = jobs.iter().filter(|job| job.is_spared_user_space(options)).map(Job::kernel).collect();
    if !spared.is_empty() {
        let kernels = spared.into_iter().collect::<Vec<_>>().join(", ");
        println!("on the oldest and the newest kernel only, not on {kernels}: {}", OF_USER_SPACE.join(" "));
    }
    for host in HOSTS.iter().filter(|host| options.hosts.iter().any(|name| name == host.name)) {
        for kernel in kernels.iter().filter(|kernel| !host.is_made_of(kernel)) {
            println!("no {} of {}: that is made of {} only", host.name, kernel.name, host.kernels.join(" and "));
        }
    }
}

/// The machines to run, round by round: those with the most tests first, so that none is left over at the end, and of them the
/// newest kernel, of which the least is known.
fn jobs<'a>(fetched: &'a [Fetched], options: &Matrix) -> VecDeque<Job<'a>> {
    let all = options.runs_all_tests();
    let is_wanted = |host: &Host| match options.hosts.as_slice() {
        [] => all || host.name == "v2" || options.smoke && options.test.is_none() && host.lacks_something(),
        names => names.iter().any(|name| name == host.name),
    };
    let mut jobs = VecDeque::new();
    for round in 0..options.repeat {
        for host in HOSTS.iter().filter(|host| is_wanted(host)) {
            let images = fetched.iter().rev().filter_map(|(kernel, image)| Some((kernel, image.as_ref().ok()?)));
            let images = images.filter(|(kernel, _)| host.is_made_of(kernel));
            jobs.extend(images.map(|(_, image)| Job { image, host, round }));
        }
    }
    jobs
}

/// Runs all machines, so many at a time.
fn work(jobs: VecDeque<Job<'_>>, options: &Matrix, run: impl Fn(&Job<'_>, u32) -> Result<Report> + Sync) -> Vec<Ended> {
    let (jobs, ended) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for worker in 0..options.jobs {
            let (jobs, ended, run) = (&jobs, &ended, &run);
            scope.spawn(move || {
                while let Some(job) = next(jobs) {
                    let outcome = run(&job, worker);
                    lock(ended).push((job.kernel(), outcome));
                }
            });
        }
    });
    ended.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An error unless all kernels were run and all machines ended well.
fn judge(fetched: &[Fetched], ended: &[Ended], logs: &Path) -> Result<()> {
    let failed = ended.iter().filter(|(_, outcome)| !outcome.as_ref().is_ok_and(Report::is_success)).count();
    let mut absent = 0;
    for (kernel, image) in fetched {
        if let Err(error) = image {
            absent += 1;
            println!("NOT RUN  {}: {error:#}", kernel.name);
        }
    }
    if failed + absent > 0 {
        bail!("{failed} virtual machines failed, {absent} kernels were not run; logs in {}", logs.display());
    }
    Ok(())
}

/// What the machines told of their rungs, for the README's table.
fn rows(ended: &[Ended]) -> Vec<table::Row> {
    let reports = ended.iter().filter_map(|(kernel, outcome)| Some((*kernel, outcome.as_ref().ok()?)));
    let told = reports.flat_map(|(kernel, report)| {
        let release = report.release.as_deref().unwrap_or_default();
        report.told.iter().map(move |value| (kernel, release, value))
    });
    table::rows(told, &kernels::KERNELS.map(|kernel| kernel.name))
}

/// The kernels of which some machine was to tell its rungs, and none did.
fn mute(fetched: &[Fetched], rows: &[table::Row], options: &Matrix) -> Vec<&'static str> {
    let is_to_tell = (options.smoke && options.test.is_none() || options.runs_all_tests())
        && (options.hosts.is_empty() || options.hosts.iter().any(|host| host == "v2"));
    let kernels = fetched.iter().filter(|(_, image)| is_to_tell && image.is_ok()).map(|(kernel, _)| kernel.name);
    kernels.filter(|kernel| rows.iter().all(|row| row.kernel != *kernel)).collect()
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
    let plan = plan(job, options);
    let archive = programs.archive(job.image, &plan, None)?;
    emulator.run(&Boot {
        vmlinuz: &job.image.vmlinuz,
        archive: &archive,
        words: &format!("{} vm.kernel={}", job.host.words, job.image.kernel.name),
        processors: if job.host.name == "smp" { options.smp.max(2) } else { options.smp },
        plan: &plan,
        directory: scratch,
        log: &log_file(job, logs),
    })
}

fn log_file(job: &Job<'_>, logs: &Path) -> PathBuf {
    let round = if job.round > 0 { format!("-round-{}", job.round + 1) } else { String::new() };
    logs.join(format!("{}{round}.log", job.name()))
}

fn plan(job: &Job<'_>, options: &Matrix) -> Vec<Step> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    if let Some(command) = &options.exec {
        return vec![Step { name: "exec", command: command.split_whitespace().map(str::to_owned).collect() }];
    }
    let mut tests = words(&["/bin/it", "--test-threads=1"]);
    match &options.test {
        Some(name) => tests.push(name.clone()),
        None if options.smoke && !job.host.lacks_something() => tests.extend(words(SMOKE)),
        None => {
            tests.extend(words(job.host.tests));
            if job.is_spared_user_space(options) {
                tests.extend(OF_USER_SPACE.iter().flat_map(|name| ["--skip", name]).map(str::to_owned));
            }
        }
    }
    vec![Step { name: machine::TESTS, command: tests }]
}

/// Prints what became of a machine.
fn tell(job: &Job<'_>, outcome: &Result<Report>, logs: &Path) {
    let name = job.name();
    let round = if job.round > 0 { format!(" (round {})", job.round + 1) } else { String::new() };
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            println!("FAILED   {name}{round}: {error:#}");
            return;
        }
    };
    let release = report.release.as_deref().unwrap_or("unknown");
    let verdict = if report.is_success() { "ok      " } else { "FAILED  " };
    println!("{verdict} {name:<16} Linux {release}: {} tests, {:.1} s{round}", report.passed, report.seconds);
    for failure in &report.failures {
        println!("           {failure}");
    }
    if !report.is_success() {
        println!("           its console: {}", log_file(job, logs).display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(failures: &[&str]) -> Ended {
        let failures = failures.iter().map(|&failure| failure.to_owned()).collect();
        ("5.10", Ok(Report { passed: 1, failures, ..Report::default() }))
    }

    #[test]
    fn a_kernel_that_cannot_be_had_is_not_taken_for_one_that_passed() {
        let image = Image {
            kernel: &kernels::KERNELS[0],
            version: String::new(),
            vmlinuz: PathBuf::new(),
            modules: Vec::new(),
        };
        let here = (&kernels::KERNELS[0], Ok(image));
        let absent: Fetched = (&kernels::KERNELS[1], Err(anyhow::anyhow!("the mirror is down")));
        let fetched = [here, absent];
        assert!(judge(&fetched[..1], &[ended(&[])], Path::new("")).is_ok());
        let refused = judge(&fetched, &[ended(&[])], Path::new("")).unwrap_err().to_string();
        assert!(refused.starts_with("0 virtual machines failed, 1 kernels were not run"), "{refused}");
        assert!(judge(&fetched[..1], &[ended(&["test x failed"])], Path::new("")).is_err());
        assert!(judge(&fetched[..1], &[("5.10", Err(anyhow::anyhow!("no emulator")))], Path::new("")).is_err());
    }

    #[test]
    fn a_name_that_chooses_no_test_is_refused() {
        let all = HOSTS.iter().flat_map(|host| host.tests).chain(OF_USER_SPACE).chain(SMOKE);
        let mut tests: Vec<String> = all.map(|name| format!("{name}::x")).collect();
        assert!(check_filters(&tests).is_ok());
        tests.retain(|test| !test.starts_with("vm::churn"));
        assert!(check_filters(&tests).unwrap_err().to_string().contains("vm::churn"));
    }
}
