//! The first process of a virtual machine of `cargo xtask vm`: makes it a host, runs what /plan says, tells how each
//! ended, and switches the machine off.
//!
//! What it tells stands on lines of the console that begin with `@vm `, one JSON object each.

use anyhow::Context as _;
use serde_json::json;
use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::Path,
    process::{Command, ExitStatus},
    thread,
};

/// What the kernel's command line asks for.
struct Host {
    cgroup: String,
    tracefs: bool,
    btf: bool,
}

fn main() {
    if std::process::id() != 1 {
        eprintln!("vm-init: this is the first process of a virtual machine; `cargo xtask vm` starts one");
        std::process::exit(2);
    }
    // The first process must not end, whatever happens: the kernel would.
    let ran = run();
    if let Err(error) = &ran {
        tell(&json!({ "error": format!("{error:#}") }));
    }
    switch_off(ran.unwrap_or(false));
}

fn run() -> anyhow::Result<bool> {
    for (kind, place) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp"), ("tmpfs", "/run")]
    {
        mount(kind, kind, place, "")?;
    }
    let words = fs::read_to_string("/proc/cmdline")?;
    let word = |name: &str| words.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let host = Host {
        cgroup: word("vm.cgroup").unwrap_or("v2").to_owned(),
        tracefs: word("vm.tracefs") != Some("no"),
        btf: word("vm.btf") != Some("no"),
    };
    tell(&json!({ "release": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim() }));
    for module in fs::read_to_string("/modules.list")?.lines() {
        load(module)?;
    }
    mount("bpf", "bpf", "/sys/fs/bpf", "")?;
    mount_cgroups(&host.cgroup)?;
    mount_disk("plain", "/var/tmp")?;
    if host.tracefs {
        mount("tracefs", "tracefs", "/sys/kernel/tracing", "")?;
    } else {
        forbid_new_mounts()?;
    }
    if !host.btf {
        // As on a host whose kernel was built without, or a container that does not see it.
        mount("tmpfs", "tmpfs", "/sys/kernel/btf", "")?;
    }
    loopback_up();
    let mut passed = true;
    for line in fs::read_to_string("/plan")?.lines() {
        let mut words = line.split('\t').peekable();
        let Some(name) = words.next() else { continue };
        // As in a shell, settings may stand before the program.
        let mut settings = Vec::new();
        while let Some(setting) = words.peek().and_then(|word| word.split_once('=')) {
            settings.push(setting);
            words.next();
        }
        let Some(program) = words.next() else { continue };
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var("PATH", "/bin") };
        let child = Command::new(program).args(words).env_clear().envs(ENVIRONMENT).envs(settings).spawn();
        let (success, status) = match child.and_then(|child| wait_for(child.id())) {
            Ok(status) => (status.success(), status.to_string()),
            Err(error) => (false, error.to_string()),
        };
        passed &= success;
        tell(&json!({ "step": name, "passed": success, "status": status }));
    }
    Ok(passed)
}

/// Waits for a child, and meanwhile for every orphan: the first process is the one they are left to.
fn wait_for(child: u32) -> io::Result<ExitStatus> {
    loop {
        let mut status = 0;
        // SAFETY: a number that the kernel may write.
        match unsafe { libc::waitpid(-1, &raw mut status, 0) } {
            -1 => return Err(io::Error::last_os_error()),
            pid if pid.cast_unsigned() == child => return Ok(ExitStatus::from_raw(status)),
            _ => {}
        }
    }
}

const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", "/bin"),
    ("HOME", "/"),
    ("TMPDIR", "/tmp"),
    ("MONITOR_BIN", "/bin/monitor"),
    ("WORKLOAD_BIN", "/bin/workload"),
    ("RUST_BACKTRACE", "0"),
];

fn tell(line: &serde_json::Value) {
    let mut out = io::stdout();
    // Nobody is left to hear that the console is gone.
    let _ = writeln!(out, "\n@vm {line}").and_then(|()| out.flush());
}

fn mount(kind: &str, source: &str, place: &str, options: &str) -> anyhow::Result<()> {
    // Places in sysfs are there already, or cannot be made.
    let _ = fs::create_dir_all(place);
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let (source, target, fstype, data) = (text(source), text(place), text(kind), text(options));
    // SAFETY: four strings that live and end with zero.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), 0, data.as_ptr().cast()) };
    anyhow::ensure!(result == 0, "cannot mount {kind} on {place}: {}", io::Error::last_os_error());
    Ok(())
}

/// Loads one module.
fn load(path: &str) -> anyhow::Result<()> {
    let file = File::open(path)?;
    // SAFETY: a descriptor and a string that live.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    let error = io::Error::last_os_error();
    anyhow::ensure!(result == 0 || error.kind() == io::ErrorKind::AlreadyExists, "cannot load {path}: {error}");
    Ok(())
}

/// Mounts the hierarchies as a host of that kind has them: `v2` alone, `hybrid` with the memory controller in version 1,
/// or `v1` alone.
fn mount_cgroups(kind: &str) -> anyhow::Result<()> {
    if kind != "v2" {
        mount("tmpfs", "tmpfs", "/sys/fs/cgroup", "mode=755")?;
        for controller in if kind == "v1" { &["memory", "blkio", "cpuacct", "pids"][..] } else { &["memory"][..] } {
            mount("cgroup", "cgroup", &format!("/sys/fs/cgroup/{controller}"), controller)?;
        }
        // As systemd does; before Linux 5.11 what is below a cgroup did not count for it otherwise.
        fs::write("/sys/fs/cgroup/memory/memory.use_hierarchy", "1").context("memory.use_hierarchy")?;
    }
    let place = match kind {
        "v2" => "/sys/fs/cgroup",
        "hybrid" => "/sys/fs/cgroup/unified",
        "v1" => return Ok(()),
        _ => anyhow::bail!("vm.cgroup={kind} is neither v2, hybrid nor v1"),
    };
    mount("cgroup2", "cgroup2", place, "nsdelegate,memory_recursiveprot")?;
    let available = fs::read_to_string(Path::new(place).join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        // Some, such as rdma, are there and cannot be given to children; the tests say what they miss.
        let _ = fs::write(Path::new(place).join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Mounts the disk with this serial number, which is how they are told apart.
fn mount_disk(serial: &str, place: &str) -> anyhow::Result<()> {
    let device = tests::disk::with_serial(serial)?;
    mount("ext4", &device.display().to_string(), place, "")
}

/// From now on nobody can open a file system by `fsopen`, as where the kernel has none of that kind or a sandbox forbids it.
fn forbid_new_mounts() -> anyhow::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD, 0, 0, 0),
        step(JUMP_EQUAL, 0, 1, libc::SYS_fsopen as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: a filter that lives while it is copied.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    anyhow::ensure!(result == 0, "cannot forbid fsopen: {}", io::Error::last_os_error());
    Ok(())
}

/// Brings the loopback device up; what needs it fails by itself where this did.
fn loopback_up() {
    // SAFETY: a socket of our own and a request the kernel reads while we wait.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request);
        libc::close(socket);
    }
}

/// Where the machine's exit device listens. It ends with status `code << 1 | 1`.
const EXIT_PORT: u16 = 0xf4;

fn switch_off(passed: bool) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: no memory is touched; a port of the virtual machine that we have asked for.
    unsafe {
        libc::sync();
        libc::tcdrain(1);
        if libc::ioperm(libc::c_ulong::from(EXIT_PORT), 1, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") u8::from(!passed));
        }
        libc::reboot(libc::RB_POWER_OFF);
    }
    loop {
        thread::park();
    }
}
