//! One virtual machine: QEMU with a kernel, an archive and disks; what its console said; and the verdict on that.

use super::{guest::Step, kernels};
use crate::process;
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// What is the same for all machines.
#[derive(Debug)]
pub(crate) struct Emulator {
    program: PathBuf,
    mke2fs: PathBuf,
    accelerator: String,
    limit: Duration,
}

/// Name of the step that runs the tests.
pub(crate) const TESTS: &str = "it";
/// The Debian package of the emulator.
const PACKAGE: &str = "qemu-system-x86";
const MEMORY_MIB: &str = "1024";
/// Bytes of the disk with a file system, and of the slow ones.
const DISK_BYTES: u64 = 512 << 20;
const SLOW_DISK_BYTES: u64 = 64 << 20;
/// How long the slow disk takes for each request, and how many a second the throttled one serves.
const SLOW_NS: u64 = 20_000_000;
const THROTTLED_IOPS: u32 = 10;
/// Exit status of the emulator when the first process reported success, and when it reported failure.
const SUCCEEDED: i32 = 1;
const FAILED: i32 = 3;
/// What a kernel says when it is not well, whatever the tests say.
const ALARMS: [&str; 11] = [
    "BUG:",
    "Oops",
    "Kernel panic",
    "[ cut here ]",
    "---[ end trace",
    "general protection fault",
    "soft lockup",
    "hard LOCKUP",
    "detected stall",
    "expedited stalls",
    "blocked for more than",
];

/// A machine to start.
pub(crate) struct Boot<'a> {
    pub(crate) vmlinuz: &'a Path,
    pub(crate) archive: &'a [u8],
    /// Words for the kernel's command line.
    pub(crate) words: &'a str,
    pub(crate) processors: u32,
    pub(crate) plan: &'a [Step],
    /// Where its disks and its log go.
    pub(crate) directory: &'a Path,
    pub(crate) log: &'a Path,
}

/// How a machine ended.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The kernel's release as the guest reported it.
    pub(crate) release: Option<String>,
    /// What the steps printed for xtask, in JSON.
    pub(crate) told: Vec<Value>,
    /// Tests that passed, over all steps.
    pub(crate) passed: usize,
    /// The test that had begun last and did not end.
    pub(crate) running: Option<String>,
    pub(crate) seconds: f64,
    /// Why it is not a success; empty where it is one.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// Whether all went well.
    pub(crate) fn is_success(&self) -> bool {
        self.failures.is_empty()
    }
}

impl Emulator {
    /// Finds it.
    pub(crate) fn find(limit: Duration) -> Result<Self> {
        let accelerator = std::env::var("VM_ACCEL").ok();
        Ok(Self {
            program: kernels::require("qemu-system-x86_64", PACKAGE)?,
            mke2fs: kernels::require("mke2fs", "e2fsprogs")?,
            accelerator: accelerator.unwrap_or_else(|| default_accelerator().to_owned()),
            limit,
        })
    }

    /// What it computes with.
    pub(crate) fn accelerator(&self) -> &str {
        &self.accelerator
    }

    fn command(&self, boot: &Boot<'_>) -> Result<Command> {
        let path = |name: &str| boot.directory.join(name);
        fs::create_dir_all(boot.directory).with_context(|| format!("cannot make {}", boot.directory.display()))?;
        fs::write(path("initrd"), boot.archive).context("cannot write the archive")?;
        for (name, bytes) in [("plain", DISK_BYTES), ("throttled", SLOW_DISK_BYTES)] {
            let disk = File::create(path(name)).and_then(|file| file.set_len(bytes));
            disk.with_context(|| format!("cannot make a disk in {}", boot.directory.display()))?;
        }
        process::run_unseen(
            Command::new(&self.mke2fs).args(["-q", "-F", "-t", "ext4", "-O", "^metadata_csum"]).arg(path("plain")),
        )?;
        let mut command = Command::new(&self.program);
        // However this program ends, no virtual machine is left behind.
        // SAFETY: prctl is one system call, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut accelerator = self.accelerator.clone();
        if accelerator == EMULATED && boot.processors > 1 {
            // The kernel patches its own code while other processors run it. One that was emulated side by side with another met
            // a breakpoint that was no longer there ("Oops: int3"). Taking turns should not allow that, and costs nothing here.
            accelerator += ",thread=single";
        }
        command.args(["-accel", &accelerator, "-machine", "q35", "-m", MEMORY_MIB]);
        // Vectors of 32 and 64 bytes, which the C library would use in every copy, cost a quarter of the time where they are emulated.
        let cpu = if self.accelerator.starts_with(EMULATED) { "Nehalem" } else { "max" };
        command.args(["-cpu", cpu]);
        command.args([
            "-smp",
            &boot.processors.to_string(),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.arg("-kernel").arg(boot.vmlinuz).arg("-initrd").arg(path("initrd"));
        let words =
            format!("console=ttyS0 panic=-1 oops=panic quiet loglevel=5 vmtest=1 mitigations=off {}", boot.words);
        command.args(["-append", words.trim_end()]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-device", "virtio-rng-pci"]);
        let file = |name: &str| path(name).display().to_string();
        let mut disk = |serial: &str, blockdev: String| {
            // So short a queue that some requests wait before it: what the kernel keeps back and what the device does differ. A
            // request takes three places of a ring without indirect ones: the driver gives a second one back to the kernel.
            let queue = match serial {
                "throttled" => ",queue-size=4,num-queues=1,seg-max-adjust=on",
                "cramped" => ",queue-size=4,num-queues=1,seg-max-adjust=on,indirect_desc=off",
                _ => "",
            };
            command.args(["-blockdev", &blockdev]);
            command.args(["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}{queue}")]);
        };
        disk(
            "plain",
            format!("driver=raw,node-name=plain,discard=unmap,file.driver=file,file.filename={}", file("plain")),
        );
        for slow in ["slow", "cramped"] {
            disk(
                slow,
                format!("driver=null-co,node-name={slow},size={SLOW_DISK_BYTES},latency-ns={SLOW_NS},read-zeroes=on"),
            );
        }
        disk(
            "throttled",
            format!(
                "driver=throttle,node-name=throttled,throttle-group=group,file.driver=file,file.filename={}",
                file("throttled")
            ),
        );
        disk(
            "faulty",
            format!(
                "driver=blkdebug,node-name=faulty,image.driver=null-co,image.size={SLOW_DISK_BYTES},image.read-zeroes=on,\
                 inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=5"
            ),
        );
        command.args(["-object", &format!("throttle-group,id=group,x-iops-total={THROTTLED_IOPS}")]);
        Ok(command)
    }

    /// Starts a machine whose console is this terminal, and waits for its end.
    pub(crate) fn interact(&self, boot: &Boot<'_>) -> Result<()> {
        let mut command = self.command(boot)?;
        // Its exit status says nothing of use here.
        command.args(["-serial", "mon:stdio"]).status().context("cannot start the emulator")?;
        Ok(())
    }

    /// Runs a machine to its end, or to the limit.
    pub(crate) fn run(&self, boot: &Boot<'_>) -> Result<Report> {
        let mut log = File::create(boot.log).with_context(|| format!("cannot make {}", boot.log.display()))?;
        let mut command = self.command(boot)?;
        let start = Instant::now();
        let child =
            command.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(child.spawn().context("cannot start the emulator")?);
        let (console, errors) =
            (child.0.stdout.take().context("no console")?, child.0.stderr.take().context("no errors")?);
        let (send, lines) = mpsc::channel();
        for reader in [Box::new(console) as Box<dyn std::io::Read + Send>, Box::new(errors)] {
            let send = send.clone();
            thread::spawn(move || {
                for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                    // Nobody listens any more where the machine was ended.
                    let _ = send.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned());
                }
            });
        }
        drop(send);
        let mut console = Console::default();
        let mut hear = |line: String| {
            console.line(&line);
            writeln!(log, "[{:7.2}] {line}", start.elapsed().as_secs_f64()).context("cannot write the log")
        };
        let timed_out = loop {
            let Some(left) = self.limit.checked_sub(start.elapsed()) else { break true };
            match lines.recv_timeout(left) {
                Ok(line) => hear(line)?,
                Err(mpsc::RecvTimeoutError::Timeout) => break true,
                Err(mpsc::RecvTimeoutError::Disconnected) => break false,
            }
        };
        if timed_out {
            // It may end at this very moment. Then comes its last line, which had no end: of the test that hangs.
            let _ = child.0.kill();
            lines.iter().try_for_each(&mut hear)?;
        }
        let status = child.0.wait().context("wait for the emulator")?.code();
        let mut report = console.report(boot.plan, status);
        if timed_out {
            let limit = self.limit.as_secs();
            let at = report.running.as_ref().map(|test| format!(", in test {test}")).unwrap_or_default();
            report.failures.insert(0, format!("it hung, or took longer than {limit} s{at}"));
        }
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }
}

/// A machine that does not outlive what went wrong here.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended and was waited for, where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The accelerator that emulates.
const EMULATED: &str = "tcg";

/// Hardware virtualisation only where the processor itself has it: some hosts offer /dev/kvm and cannot run such kernels.
fn default_accelerator() -> &'static str {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if usable && (has("vmx") || has("svm")) { "kvm" } else { EMULATED }
}

/// What is kept of a console.
#[derive(Default)]
struct Console {
    release: Option<String>,
    told: Vec<Value>,
    /// Steps that ended, and whether well.
    steps: Vec<(String, bool, String)>,
    passed: usize,
    running: Option<String>,
    failed: Vec<String>,
    alarms: Vec<String>,
    errors: Vec<String>,
}

impl Console {
    fn line(&mut self, line: &str) {
        if let Some(text) = line.strip_prefix("@vm ") {
            match serde_json::from_str::<Value>(text) {
                Ok(value) => self.message(value),
                Err(_) => self.errors.push(format!("a garbled line: {line}")),
            }
        } else if let Some(result) = line.strip_prefix("test result: ") {
            // What the kernel says may stand in the middle of a test's own line, but hardly in this one.
            let passed =
                result.split_once(". ").and_then(|(_, counts)| counts.split_once(" passed")?.0.parse::<usize>().ok());
            self.passed += passed.unwrap_or(0);
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            self.running = outcome.is_empty().then(|| name.to_owned());
            if outcome == "FAILED" {
                self.failed.push(name.to_owned());
            }
        } else if ALARMS.iter().any(|alarm| line.contains(alarm)) {
            self.alarms.push(line.to_owned());
        }
    }

    fn message(&mut self, value: Value) {
        if let Some(release) = value["release"].as_str() {
            self.release = Some(release.to_owned());
        } else if let (Some(step), Some(passed)) = (value["step"].as_str(), value["passed"].as_bool()) {
            self.steps.push((step.to_owned(), passed, value["status"].as_str().unwrap_or_default().to_owned()));
        } else if let Some(error) = value["error"].as_str() {
            self.errors.push(error.to_owned());
        } else {
            self.told.push(value);
        }
    }

    /// Success takes everything: the exit status, every step's own word, and a kernel without complaints.
    fn report(self, plan: &[Step], status: Option<i32>) -> Report {
        let mut failures = self.errors;
        failures.extend(self.alarms.iter().map(|alarm| format!("the kernel said: {alarm}")));
        failures.extend(self.failed.iter().map(|name| format!("test {name} failed")));
        for step in plan {
            match self.steps.iter().find(|(name, ..)| name == step.name) {
                Some((_, true, _)) => {}
                Some((name, false, status)) => failures.push(format!("{name} ended with {status}")),
                None => failures.push(format!("{} did not end", step.name)),
            }
        }
        if failures.is_empty() && self.passed == 0 && plan.iter().any(|step| step.name == TESTS) {
            failures.push("no test ran: none has such a name".to_owned());
        }
        match status {
            Some(SUCCEEDED) => {}
            Some(FAILED) if !failures.is_empty() => {}
            Some(FAILED) => failures.push("it reported failure".to_owned()),
            Some(0) => failures.push("it switched itself off without a verdict: a panic, perhaps".to_owned()),
            Some(status) => failures.push(format!("the emulator ended with status {status}")),
            None => failures.push("the emulator was ended by a signal".to_owned()),
        }
        if self.release.is_none() {
            failures.push("it did not say which kernel it is".to_owned());
        }
        Report {
            release: self.release,
            told: self.told,
            passed: self.passed,
            running: self.running,
            seconds: 0.0,
            failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str], status: i32) -> Report {
        let mut console = Console::default();
        lines.iter().for_each(|line| console.line(line));
        console.report(&[Step { name: TESTS, command: Vec::new() }], Some(status))
    }

    const GOOD: [&str; 4] = [
        r#"@vm {"release":"6.1.0"}"#,
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        r#"@vm {"doctor":{}}"#,
        r#"@vm {"step":"it","passed":true,"status":"exit status: 0"}"#,
    ];

    #[test]
    fn success_takes_the_exit_status_and_every_steps_word() {
        let good = report(&GOOD, SUCCEEDED);
        assert!(good.failures.is_empty(), "{:?}", good.failures);
        assert_eq!((good.release.as_deref(), good.passed, good.told.len()), (Some("6.1.0"), 1, 1));
        assert!(!report(&GOOD[..3], SUCCEEDED).failures.is_empty(), "a step without a word");
        assert!(!report(&GOOD[1..], SUCCEEDED).failures.is_empty(), "no release");
        assert!(report(&[GOOD[0], GOOD[3]], SUCCEEDED).failures[0].contains("no test ran"));
    }

    #[test]
    fn no_verdict_is_a_failure() {
        for status in [0, FAILED, 124] {
            assert!(!report(&GOOD, status).failures.is_empty(), "{status}");
        }
    }

    #[test]
    fn a_complaint_of_the_kernel_is_a_failure_though_all_tests_passed() {
        for complaint in [
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
            "watchdog: Watchdog detected hard LOCKUP on cpu 0",
            "BUG: unable to handle page fault for address: ffffffffc0000000",
            "Oops: 0000 [#1] SMP PTI",
            "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP",
            "------------[ cut here ]------------",
            "---[ end trace 0000000000000000 ]---",
            "Kernel panic - not syncing: Fatal exception",
            "rcu: INFO: rcu_sched self-detected stall on CPU",
            "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 1-... }",
            "INFO: task it:71 blocked for more than 120 seconds.",
        ] {
            let line = format!("[   12.345678] {complaint}");
            let failures = report(&[&GOOD[..], &[&line]].concat(), SUCCEEDED).failures;
            assert!(failures.iter().any(|failure| failure.contains(complaint)), "{complaint}: {failures:?}");
        }
    }

    #[test]
    fn the_test_that_did_not_end_is_known() {
        let running = |lines: &[&str]| report(lines, FAILED).running;
        assert_eq!(running(&[GOOD[0], "test a::x ... ok", "test a::y ... "]).as_deref(), Some("a::y"));
        assert_eq!(running(&[GOOD[0], "test a::y ... ok"]), None);
    }

    #[test]
    fn failed_tests_are_named() {
        let lines =
            [GOOD[0], "test block_io::x ... FAILED", r#"@vm {"step":"it","passed":false,"status":"exit status: 101"}"#];
        let failures = report(&lines, FAILED).failures;
        assert_eq!(failures, ["test block_io::x failed", "it ended with exit status: 101"]);
    }
}
