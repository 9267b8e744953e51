//! `monitor exec`: what it tells of a command is what the command says of itself, and it ends as the command does, but for the gate.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::UnixStream,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tests::{
    Cgroup, Machine, agent,
    bpf::Census,
    clock::{PATIENCE, wait_until},
    expect, http, json, proc,
};

/// Debian's own, which starts no other process.
const PYTHON: &str = "/usr/bin/python3";
/// Touches so many MiB, waits so many seconds, in which there is to be a tick, and says what the kernel counted of it.
const TOUCHES: &str = "
import json, mmap, os, resource, sys, time
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size)
for page in range(0, size, 4096): memory[page] = 1
time.sleep(float(sys.argv[2]))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({'bytes': used.ru_maxrss * 1024, 'faults': used.ru_minflt + used.ru_majflt}), flush=True)
# Python would give back what it has first, which a tick may see.
os._exit(0)
";

/// A place of its own for a run of `monitor exec`: its temporary directory, and the story as JSON.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::create_dir(directory.path().join("tmp"))?;
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, flags: &[&str], command: &[&str]) -> Result<Command> {
        let mut exec = agent::command()?;
        exec.arg("exec").args(flags).arg("--json").arg(self.path("story.json")).arg("--").args(command);
        exec.current_dir(self.directory.path()).env("TMPDIR", self.path("tmp")).stdin(Stdio::null());
        // Tests that run in the background, or outlive their terminal, have these ignored, and a shell cannot trap what it is begun
        // with ignored.
        // SAFETY: each is one system call, which is allowed between fork and exec.
        unsafe {
            exec.pre_exec(|| {
                for signal in [libc::SIGINT, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        Ok(exec)
    }

    /// Runs a command to its end, after which there is nothing left of the agent.
    fn run(&self, flags: &[&str], command: &[&str]) -> Result<Output> {
        let output = self.command(flags, command)?.output()?;
        self.is_clean()?;
        Ok(output)
    }

    fn story(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.path("story.json"))?)?)
    }

    fn is_clean(&self) -> Result<()> {
        let left: Vec<_> = fs::read_dir(self.path("tmp"))?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command that goes on has said first on its standard output.
fn first_line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("no standard output")?).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Sends a signal to a process, or with a negative number to a group.
fn signal(pid: i64, signal: i32) -> Result<()> {
    // SAFETY: takes two numbers and touches no memory.
    let result = unsafe { libc::kill(i32::try_from(pid)?, signal) };
    ensure!(result == 0, "cannot send signal {signal} to {pid}: {}", std::io::Error::last_os_error());
    Ok(())
}

fn percent_apart(what: &str, told: u64, truth: u64, most: u64) -> Result<()> {
    ensure!(truth > 0, "{what}: nothing to compare with");
    ensure!(told.abs_diff(truth) * 100 <= truth * most, "{what}: {told}, in truth {truth}");
    Ok(())
}

#[test]
fn memory_and_faults_are_those_that_the_command_says() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    let output = place.run(&["--tick", "100ms"], &[PYTHON, "-c", TOUCHES, "256", "4"])?;
    expect::exactly("exit code", output.status.code(), Some(0)).with_context(|| words(&output))?;
    // All of standard output is the command's.
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let (bytes, faults) = (json::count(&said, "bytes")?, json::count(&said, "faults")?);
    ensure!(bytes > 256 << 20, "it touched nothing: {said}");
    let story = place.story()?;
    percent_apart("peak", json::count(&story, "memory.peak_bytes")?, bytes, 2)?;
    percent_apart("memory at last", json::count(&story, "memory.last_bytes")?, bytes, 2)?;
    percent_apart("max RSS", json::count(&story, "memory.max_rss_bytes")?, bytes, 1)?;
    percent_apart("faults", json::count(&story, "page_faults.total")?, faults, 2)?;
    ensure!(json::count(&story, "address_space.mapped_bytes_total")? > 256 << 20, "nothing mapped: {story}");
    expect::exactly("processes", json::count(&story, "processes.total")?, 1)?;
    ensure!(json::number(&story, "duration_seconds")? >= 4.0, "it took longer: {story}");
    expect::exactly("exit code told", json::count(&story, "exit_code")?, 0)?;
    ensure!(words(&output).starts_with("monitor: /usr/bin/python3 -c "), "no story: {}", words(&output));
    Ok(())
}

#[test]
fn a_command_that_is_over_before_the_first_tick_is_counted_all_the_same() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    let output = place.run(&["--tick", "1h"], &[PYTHON, "-c", TOUCHES, "64", "0"])?;
    expect::exactly("exit code", output.status.code(), Some(0)).with_context(|| words(&output))?;
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let (story, bytes) = (place.story()?, json::count(&said, "bytes")?);
    percent_apart("faults", json::count(&story, "page_faults.total")?, json::count(&said, "faults")?, 3)?;
    percent_apart("max RSS", json::count(&story, "memory.max_rss_bytes")?, bytes, 1)?;
    ensure!(json::at(&story, "memory.peak_bytes")?.is_null(), "no tick has seen it: {story}");
    expect::exactly("verdict", json::text(&story, "verdict")?, "insufficient")
}

#[test]
fn what_lives_for_less_than_a_tick_is_counted_and_what_goes_on_is_told() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    let many = "i=0; while [ $i -lt 400 ]; do /bin/true; i=$((i+1)); done";
    let output = place.run(&[], &["sh", "-c", many])?;
    expect::exactly("exit code", output.status.code(), Some(0)).with_context(|| words(&output))?;
    let story = place.story()?;
    expect::exactly("processes", json::count(&story, "processes.total")?, 401)?;
    expect::exactly("still running", json::count(&story, "processes.running")?, 0)?;
    ensure!(json::count(&story, "page_faults.total")? > 401 * 10, "no faults: {story}");

    // The one in between has gone, and the last is nobody's child any more.
    let daemon = "(setsid sleep 30 >/dev/null 2>&1 & echo $!)";
    let output = place.run(&[], &["sh", "-c", daemon])?;
    let pid: i64 = String::from_utf8(output.stdout.clone())?.trim().parse().with_context(|| words(&output))?;
    signal(pid, libc::SIGKILL)?;
    let story = place.story()?;
    expect::between("processes", 3, json::count(&story, "processes.total")?, 4)?;
    expect::exactly("still running", json::count(&story, "processes.running")?, 1)?;
    ensure!(words(&output).contains("1 still running"), "not told: {}", words(&output));
    Ok(())
}

#[test]
fn those_in_other_cgroups_are_of_the_command_and_those_killed_for_want_of_memory_are_told() -> Result<()> {
    let _machine = Machine::claim()?;
    let (place, group) = (Place::new()?, Cgroup::new("exec")?);
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.directory().display());
    let inside = |command: &str| format!("sh -c '{enter}' sh {command}");
    fs::write(place.path("touches.py"), TOUCHES)?;
    let script = inside(&format!("{PYTHON} touches.py 128 4"));
    let output = place.run(&["--tick", "100ms"], &["sh", "-c", &format!("{script}; exit 0")])?;
    let said: Value = serde_json::from_slice(&output.stdout).with_context(|| words(&output))?;
    let story = place.story()?;
    percent_apart("peak", json::count(&story, "memory.peak_bytes")?, json::count(&said, "bytes")?, 4)?;
    percent_apart("faults", json::count(&story, "page_faults.total")?, json::count(&said, "faults")?, 4)?;
    expect::exactly("processes", json::count(&story, "processes.total")?, 2)?;
    expect::exactly("trees", json::list(&story, "trees")?.len(), 2)?;
    expect::exactly("killed", json::count(&story, "processes.oom_kills_total")?, 0)?;

    group.limit_memory(48 << 20)?;
    let output = place.run(&["--tick", "100ms"], &["sh", "-c", &format!("{script}; exit 0")])?;
    expect::exactly("exit code", output.status.code(), Some(0)).with_context(|| words(&output))?;
    ensure!(output.stdout.is_empty(), "it was not killed");
    expect::exactly("killed", json::count(&place.story()?, "processes.oom_kills_total")?, 1)?;
    ensure!(words(&output).contains("1 killed for want of memory"), "not told: {}", words(&output));
    Ok(())
}

#[test]
fn it_ends_as_the_command_does_and_has_no_word_in_its_output() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    for (command, code) in [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 128 + 9), ("kill -TERM $$", 128 + 15)] {
        let output = place.run(&[], &["sh", "-c", command])?;
        expect::exactly(command, output.status.code(), Some(code)).with_context(|| words(&output))?;
        ensure!(output.stdout.is_empty(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
        ensure!(words(&output).contains("verdict"), "{command}: no story: {}", words(&output));
        let story = place.story()?;
        let told =
            if code < 128 { json::count(&story, "exit_code")? } else { json::count(&story, "exit_signal")? + 128 };
        expect::exactly("exit code told", told, u64::from(code.unsigned_abs()))?;
    }
    let text = place.path("text");
    fs::write(&text, "no program\n")?;
    for (command, code) in [("/no/such/command", 127), ("no-such-command", 127), (&*text.to_string_lossy(), 126)] {
        let output = place.run(&[], &[command])?;
        expect::exactly(command, output.status.code(), Some(code)).with_context(|| words(&output))?;
        ensure!(words(&output).contains(command) && words(&output).lines().count() == 1, "{}", words(&output));
    }
    for refused in [&["exec"][..], &["exec", "--fail-on", "stable", "--", "true"], &["exec", "--tick", "1ms", "true"]] {
        expect::exactly(&format!("{refused:?}"), agent::run(refused)?.status.code(), Some(2))?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_watched_is_not_begun() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    for (flags, code) in [(["--set", "page_fault.rung=dance"], 2), (["--socket", "/proc/monitor.sock"], 1)] {
        let output = place.run(&flags, &["touch", "begun"])?;
        expect::exactly(&format!("{flags:?}"), output.status.code(), Some(code)).with_context(|| words(&output))?;
        ensure!(words(&output).lines().count() == 1, "more than one line: {}", words(&output));
    }
    // Nor is one whose story would find no file.
    fs::remove_file(place.path("story.json"))?;
    fs::create_dir(place.path("story.json"))?;
    expect::exactly("exit code", place.run(&[], &["touch", "begun"])?.status.code(), Some(1))?;
    ensure!(!place.path("begun").exists(), "the command was begun");
    Ok(())
}

#[test]
fn the_command_has_its_input_output_environment_and_directory() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    let mut exec =
        place.command(&[], &["sh", "-c", "cat; pwd; echo \"$COLOUR\"; ulimit -n; ulimit -l; echo bad >&2"])?;
    let mut plain = Command::new("sh");
    plain.args(["-c", "cat; pwd; echo \"$COLOUR\"; ulimit -n; ulimit -l"]).current_dir(place.directory.path());
    let mut said = Vec::new();
    for command in [&mut exec, &mut plain] {
        command.env("COLOUR", "red").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut input = child.stdin.take().context("no standard input")?;
        let writer = thread::spawn(move || input.write_all(&[7; 300_000]));
        said.push(child.wait_with_output()?);
        ensure!(writer.join().is_ok_and(|written| written.is_ok()), "it does not read its input");
    }
    ensure!(said[0].stdout == said[1].stdout, "{}", String::from_utf8_lossy(&said[0].stdout[300_000..]));
    ensure!(words(&said[0]).starts_with("bad\nmonitor: "), "standard error: {}", words(&said[0]));
    place.is_clean()
}

#[test]
fn only_flags_say_where_it_listens_and_writes() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    let mut exec = place.command(&[], &["sh", "-c", "echo ready; read line"])?;
    for variable in ["MONITOR_SOCKET", "MONITOR_WORKLOAD_SOCKET", "MONITOR_RECORD_PATH"] {
        exec.env(variable, place.path("of-another-agent"));
    }
    let mut child = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    expect::exactly("first words", first_line(&mut child)?.as_str(), "ready")?;
    let directory = fs::read_dir(place.path("tmp"))?.next().context("no directory")??.path();
    expect::exactly("mode of its directory", fs::metadata(&directory)?.permissions().mode() & 0o7777, 0o700)?;
    let answer = http::get(&directory.join("monitor.sock"), "/v1/health")?;
    expect::exactly("status", answer.status, 200)?;
    ensure!(!place.path("of-another-agent").exists(), "it has listened or written where a variable says");
    drop(child.stdin.take());
    // `read` fails at the end of its input.
    expect::exactly("exit code", child.wait()?.code(), Some(1))?;
    place.is_clean()
}

#[test]
fn who_ends_it_ends_the_command_and_hears_the_story() -> Result<()> {
    let _machine = Machine::claim()?;
    let place = Place::new()?;
    // A terminal's Ctrl-C goes to the whole group; the others to this one alone.
    for (number, name, whom) in [(libc::SIGTERM, "TERM", 1), (libc::SIGHUP, "HUP", 1), (libc::SIGINT, "INT", -1)] {
        let script = format!("trap 'echo caught; exit 9' {name}; echo ready; while :; do sleep 0.1; done");
        let mut exec = place.command(&[], &["sh", "-c", &script])?;
        let mut child = exec.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        expect::exactly("first words", first_line(&mut child)?.as_str(), "ready")?;
        signal(whom * i64::from(child.id()), number)?;
        let output = child.wait_with_output()?;
        expect::exactly(name, output.status.code(), Some(9)).with_context(|| words(&output))?;
        expect::exactly(name, &*String::from_utf8_lossy(&output.stdout), "caught\n")?;
        ensure!(words(&output).contains("ended with 9"), "no story: {}", words(&output));
        place.is_clean()?;
    }
    Ok(())
}

#[test]
fn a_kill_leaves_nothing_in_the_kernel_and_the_command_alone() -> Result<()> {
    let _machine = Machine::claim()?;
    let (place, before) = (Place::new()?, Census::take()?);
    let mut exec = place.command(&[], &["sh", "-c", "echo $$; exec sleep 60 >/dev/null 2>&1"])?;
    let mut child = exec.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let command: u32 = first_line(&mut child)?.parse()?;
    let loaded = Census::take()?.without(&before);
    ensure!(!loaded.programs.is_empty(), "no new programs: nothing to see go");
    child.kill()?;
    expect::exactly("status", child.wait()?.signal(), Some(libc::SIGKILL))?;
    wait_until("programs, maps and links to go", PATIENCE, || {
        Ok(Census::take()?.and(&loaded).is_empty().then_some(()))
    })?;
    ensure!(matches!(proc::state(command)?, 'S' | 'R'), "the command has ended, too");
    signal(command.into(), libc::SIGKILL)
}

/// A server that `monitor exec` watches with a gate, and that ends with a code of its own when it is asked to end.
struct Gated {
    place: Place,
    child: Child,
}

impl Gated {
    fn start(kind: &str, code: i32) -> Result<Self> {
        let place = Place::new()?;
        fs::write(place.path("leaky.py"), include_str!("../src/leaky.py"))?;
        let script = format!(
            "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n\
             sys.argv = ['leaky.py', '{kind}']\nexec(open('leaky.py').read())"
        );
        let mut exec = place.command(&["--tick", "100ms", "--fail-on", "leak"], &[PYTHON, "-c", &script])?;
        let child = exec.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Ok(Self { place, child })
    }

    /// Asks so often in so many seconds, then asks it to end.
    fn serve(self, requests: u32, seconds: u32) -> Result<(Place, Output)> {
        let mut client = Client::connect(&self.place.path("socket"))?;
        let mut next = Instant::now();
        for _ in 0..requests {
            client.ask()?;
            next += Duration::from_secs(seconds.into()) / requests;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        signal(self.child.id().into(), libc::SIGTERM)?;
        let output = self.child.wait_with_output()?;
        self.place.is_clean()?;
        Ok((self.place, output))
    }
}

struct Client(UnixStream);

impl Client {
    fn connect(path: &Path) -> Result<Self> {
        let stream = wait_until("the server to listen", PATIENCE, || Ok(UnixStream::connect(path).ok()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    fn ask(&mut self) -> Result<()> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok") {
            let mut part = [0; 1024];
            let length = self.0.read(&mut part)?;
            ensure!(length > 0, "the server has gone");
            answer.extend_from_slice(&part[..length]);
        }
        Ok(())
    }
}

#[test]
fn the_gate_fails_what_leaks_and_only_that() -> Result<()> {
    const REQUESTS: u32 = 1500;
    const SECONDS: u32 = 20;
    let _machine = Machine::claim()?;
    let cases = [("leaks", 0, 4, "leak"), ("fixed", 0, 0, "stable"), ("leaks", 7, 7, "leak")];
    let runs = cases.map(|(kind, code, ..)| thread::spawn(move || Gated::start(kind, code)?.serve(REQUESTS, SECONDS)));
    for ((kind, _, code, verdict), run) in cases.into_iter().zip(runs) {
        let Ok(run) = run.join() else { bail!("the client of {kind} panicked") };
        let (place, output) = run?;
        let story = place.story()?;
        expect::exactly(kind, output.status.code(), Some(code)).with_context(|| words(&output))?;
        expect::exactly("verdict", json::text(&story, "verdict")?, verdict).with_context(|| words(&output))?;
        expect::exactly("failed", json::at(&story, "failed")?, &Value::from(verdict == "leak"))?;
        expect::exactly("requests", json::count(&story, "requests.requests_total")?, REQUESTS.into())?;
        if verdict == "leak" {
            let tree = json::list(&story, "trees")?.first().context("no tree")?;
            let bytes = json::number(tree, "bytes_per_1000_requests.value")?;
            ensure!((bytes / 1e8 - 1.0).abs() < 0.1, "{bytes} bytes in 1000 requests, where it keeps 100,000 of each");
            ensure!(words(&output).contains("found: --fail-on leak"), "not told: {}", words(&output));
        }
    }
    Ok(())
}
