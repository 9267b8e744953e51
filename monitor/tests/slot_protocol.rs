//! The page-fault slots under attack: two processes alternate on one CPU in a fault storm while their counts are read a
//! thousand times a second. No count may ever fall, and at the end each must be what the process itself counted.
//!
//! Needs root and BTF: it attaches the real programs.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use monitor::{
    collect::page_fault::PageFault,
    config::Config,
    doctor,
    ids::Tgid,
    kernel::{attach::Loader, plan, support::Support},
    source::Source,
};
use monitor_common::{Owner, page_fault};
use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write},
    os::fd::FromRawFd,
    thread,
    time::{Duration, Instant},
};

const STORM: Duration = Duration::from_secs(3);
const PAGES: usize = 64;
const PAGE: usize = 4096;

#[test]
fn counts_never_fall_and_end_exact_by_typed_tracepoint() {
    storm_by("tp_btf");
}

#[test]
fn counts_never_fall_and_end_exact_by_raw_tracepoint() {
    storm_by("raw_tracepoint");
}

fn storm_by(rung: &str) {
    let (config, support) = fields();
    let settings = doctor::settings(&config);
    let wish = plan::Wish { disabled: false, rung: Some(rung) };
    let outcome = Loader::new(&support, &settings).attach(&plan::plan(Source::PageFault, &support.facts, &wish));
    let mut attached = outcome.attached.unwrap_or_else(|| panic!("page_fault by {rung}: {:?}", outcome.refused));
    let mut source = PageFault::open(&mut attached, support.facts.possible_cpus).unwrap();

    let mut children = [Child::start(), Child::start()];
    let before = read(&mut source, &children);
    let proc_before = children.each_ref().map(Child::faults_by_proc);
    children.iter_mut().for_each(Child::go);

    let (mut last, mut reads, mut rises) = (before.clone(), 0u64, 0u64);
    let start = Instant::now();
    // A read every millisecond; a busy machine takes longer for as many.
    let enough = STORM.as_millis() as u64;
    while start.elapsed() < STORM || reads < enough && start.elapsed() < 10 * STORM {
        let now = read(&mut source, &children);
        for (tgid, counts) in &now {
            let (was, is): (u64, u64) = (last[tgid].iter().sum(), counts.iter().sum());
            let fell = last[tgid].iter().zip(counts).any(|(was, is)| is < was);
            assert!(!fell, "counts of {tgid} fell from {:?} to {counts:?}", last[tgid]);
            rises += u64::from(is > was);
        }
        last = now;
        reads += 1;
        thread::sleep(Duration::from_micros(100));
    }
    assert!(reads >= enough && rises > 100, "{reads} reads saw {rises} rises: nothing was tested");

    for (child, by_proc) in children.iter_mut().zip(proc_before) {
        let own = child.finish();
        let counts = read(&mut source, std::slice::from_ref(child));
        let count = |kinds: &[u64]| kinds.iter().sum::<u64>();
        let total = count(&counts[&child.tgid]) - count(&before[&child.tgid]);
        assert!(own > 10_000, "only {own} faults were made");
        assert_eq!(total, child.faults_by_proc() - by_proc, "against /proc/PID/stat");
        // Each page is touched once; waking up may touch a page of the child's own on top.
        assert!((own..own + 16).contains(&total), "{total} counted, {own} made");
    }
}

fn fields() -> (Config, Support) {
    let config = Config::default();
    let support = doctor::examine_fields(&config).unwrap();
    assert_eq!(support.facts.fields_missing, None);
    (config, support)
}

/// Counts by process, over all cgroups.
fn read(source: &mut PageFault, children: &[Child]) -> HashMap<Tgid, page_fault::Counts> {
    let mut counts: HashMap<_, _> = children.iter().map(|child| (child.tgid, page_fault::Counts::default())).collect();
    for (Owner { tgid, .. }, read) in source.read().unwrap() {
        if let Some(counts) = counts.get_mut(&Tgid(tgid)) {
            counts.iter_mut().zip(read).for_each(|(sum, count)| *sum += count);
        }
    }
    counts
}

/// A forked process on CPU 0 that touches fresh pages until it is told to stop.
struct Child {
    tgid: Tgid,
    orders: File,
    answers: File,
}

impl Child {
    fn start() -> Self {
        let (orders, answers) = (pipe(), pipe());
        // SAFETY: the child calls nothing that other threads of this process could have left locked.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            storm(orders.0, answers.1);
        }
        // SAFETY: this process's ends of its own pipes.
        let mut child = unsafe {
            libc::close(orders.0);
            libc::close(answers.1);
            Self { tgid: Tgid(pid as u32), orders: File::from_raw_fd(orders.1), answers: File::from_raw_fd(answers.0) }
        };
        child.answer();
        child
    }

    fn go(&mut self) {
        self.orders.write_all(b"g").unwrap();
    }

    /// Stops the storm; answers with the number of pages touched.
    fn finish(&mut self) -> u64 {
        self.orders.write_all(b"s").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> u64 {
        let mut number = [0; 8];
        self.answers.read_exact(&mut number).expect("the child's answer");
        u64::from_ne_bytes(number)
    }

    /// Minor and major faults, fields 10 and 12 of /proc/PID/stat.
    fn faults_by_proc(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.tgid)).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[7].parse::<u64>().unwrap() + fields[9].parse::<u64>().unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that nobody else waits for.
        unsafe {
            libc::kill(self.tgid.0 as i32, libc::SIGKILL);
            libc::waitpid(self.tgid.0 as i32, std::ptr::null_mut(), 0);
        }
    }
}

fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    (ends[0], ends[1])
}

/// The child: system calls and its own stack only.
fn storm(orders: i32, answers: i32) -> ! {
    // SAFETY: plain system calls on descriptors and memory of this process.
    unsafe {
        let mut cpu: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpu);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpu);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let memory = libc::mmap(std::ptr::null_mut(), PAGES * PAGE, protection, flags, -1, 0);
        libc::madvise(memory, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
        let mut touched = 0u64;
        let mut order = 0u8;
        libc::write(answers, (&raw const touched).cast(), 8);
        libc::read(orders, (&raw mut order).cast(), 1);
        libc::fcntl(orders, libc::F_SETFL, libc::O_NONBLOCK);
        while libc::read(orders, (&raw mut order).cast(), 1) != 1 {
            for page in 0..PAGES {
                memory.cast::<u8>().add(page * PAGE).write_volatile(1);
            }
            touched += PAGES as u64;
            libc::madvise(memory, PAGES * PAGE, libc::MADV_DONTNEED);
            libc::sched_yield();
        }
        libc::write(answers, (&raw const touched).cast(), 8);
        loop {
            libc::pause();
        }
    }
}
