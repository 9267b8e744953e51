#!/usr/bin/env python3
"""Records the memory of real programs for `cargo xtask scorecard` and `cargo xtask backtest`, beside their generated lives.

    sudo python3 tests/corpus/record.py MONITOR DIRECTORY [SECONDS [NAME...]]

Starts an agent and some 25 programs, each in a memory cgroup of its own, asks the servers among them for as long as it takes
(default 780 s: what serves no requests is judged after ten minutes), and writes DIRECTORY/NAME.leak.csv or NAME.innocent.csv,
a row a second. Whether it leaks is known, as each program does what its line here says. It listens on Unix sockets and loopback,
and ends what it started. With names it records those alone; the larger programs, of which tests/corpus/histories has the sizes,
are recorded only by name ("histories" are all of them). Needs redis-server, nginx, postgresql with pgbench, perl, awk, stress-ng, gcc, make and xz.
"""
import glob
import http.client
import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

MONITOR, DIRECTORY = sys.argv[1:3]
SECONDS = int(sys.argv[3]) if len(sys.argv) > 3 else 780
NAMES = set(sys.argv[4:])
HISTORIES = ["postgres-pgbench", "gcc-make", "python-model", "redis-snapshots", "xz-backups", "sort-reports"]
if "histories" in NAMES:
    NAMES |= set(HISTORIES)
HERE = os.path.dirname(os.path.abspath(__file__))
LEAKY = os.path.join(HERE, "..", "src", "leaky.py")
WORK = tempfile.mkdtemp(prefix="monitor-corpus-")
os.chmod(WORK, 0o755)
V1 = "/sys/fs/cgroup/memory"
ROOT = os.path.join(V1 if os.path.isdir(V1) else "/sys/fs/cgroup", f"monitor-corpus-{os.getpid()}")
random.seed(7)
programs, processes, ending = {}, [], threading.Event()


def is_wanted(name):
    return name in NAMES if NAMES or name in HISTORIES else True


def start(name, command, **more):
    """A program in a cgroup of its own."""
    group = os.path.join(ROOT, name)
    os.makedirs(group)
    join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(join + command, start_new_session=True, **{**quiet, **more})
    processes.append(process)
    return process


def client(rate, connect, ask):
    """Asks `rate(seconds)` times a second, until the end."""
    def run():
        begin, due, connection = time.time(), 0.0, None
        while not ending.is_set():
            try:
                connection = connection or connect()
                ask(connection)
            except (OSError, http.client.HTTPException):
                connection = None
                time.sleep(0.2)
            due = max(due + 1.0 / rate(time.time() - begin), time.time() - begin - 1.0)
            time.sleep(max(0.0, begin + due - time.time()))
    threading.Thread(target=run, daemon=True).start()


def unix(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(path)
    return connection


def http_ask(connection):
    connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.endswith((b"ok", b"</html>\n")):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError
        answer += part


def steady(rate):
    return lambda seconds: rate


def daily(rate):
    """A day is four minutes here."""
    return lambda seconds: rate * (1.1 + math.sin(seconds / 240 * 2 * math.pi))


def ramp(rate):
    return lambda seconds: rate * (0.2 + seconds / SECONDS)


def python_server(name, kind, rate):
    if not is_wanted(name):
        return
    programs[name] = kind == "leaks"
    directory = os.path.join(WORK, name)
    os.makedirs(directory)
    start(name, ["python3", LEAKY, kind], cwd=directory)
    client(rate, lambda: unix(os.path.join(directory, "socket")), http_ask)


def redis(name, leaks, rate, settings, commands):
    """`commands(n)` are those of the n-th request."""
    if not is_wanted(name):
        return
    programs[name] = leaks
    path = os.path.join(WORK, name + ".sock")
    start(name, ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"] + settings, cwd=WORK)
    counter = iter(range(1 << 60))

    def ask(connection):
        for command in commands(next(counter)):
            words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
            connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
            answer = connection.recv(65536)
            if answer.startswith(b"$") and not answer.startswith(b"$-1"):
                length = int(answer[1:answer.index(b"\r\n")]) + answer.index(b"\r\n") + 4
                while len(answer) < length:
                    answer += connection.recv(65536)
    client(rate, lambda: unix(path), ask)


def by_time(name, leaks, command):
    """A program that serves nobody."""
    if not is_wanted(name):
        return
    programs[name] = leaks
    start(name, command, cwd=WORK)


def python(text):
    return ["python3", "-c", "import time, random\n" + text]


def nginx(name):
    if not is_wanted(name):
        return
    programs[name] = False
    path, root = os.path.join(WORK, name + ".sock"), os.path.join(WORK, name)
    os.makedirs(root)
    open(os.path.join(root, "index.html"), "w").write("<html>" + "x" * 8000 + "</html>\n")
    conf = os.path.join(WORK, name + ".conf")
    open(conf, "w").write(f"""daemon off; pid {WORK}/{name}.pid; error_log /dev/null; worker_processes 1; events {{}}
http {{ access_log off; server {{ listen unix:{path}; root {root}; }} }}""")
    start(name, ["nginx", "-c", conf])
    client(steady(20), lambda: unix(path), http_ask)


def postgres_server(name, buffers):
    data, user = os.path.join(WORK, name), ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    bin = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
    os.makedirs(data)
    shutil.chown(data, "postgres", "postgres")
    subprocess.run(user + [f"{bin}/initdb", "-D", data, "-A", "trust"], check=True, stdout=subprocess.DEVNULL, cwd=data)
    start(name, user + [f"{bin}/postgres", "-D", data, "-k", data, "-c", "listen_addresses=", "-c", f"shared_buffers={buffers}"], cwd=data)
    return data


def postgres(name, leaks, rate, statements):
    """One session that goes on; `statements(n)` is the n-th request."""
    if not is_wanted(name):
        return
    programs[name] = leaks
    data = postgres_server(name, "16MB")
    session = {}

    def connect():
        session["psql"] = subprocess.Popen(["psql", "-h", data, "-U", "postgres", "-qtA"], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        processes.append(session["psql"])
        return session["psql"]
    counter = iter(range(1 << 60))

    def ask(psql):
        if psql.poll() is not None:
            raise ConnectionError
        psql.stdin.write(statements(next(counter)) + "\\echo done\n")
        psql.stdin.flush()
        while psql.stdout.readline() not in ("done\n", ""):
            pass
    client(rate, connect, ask)


def postgres_under_pgbench(name):
    """Sessions that become more and fewer, of a database that is larger than its buffers; a report that sorts, now and then."""
    if not is_wanted(name):
        return
    programs[name] = False
    data = postgres_server(name, "128MB")
    report = os.path.join(data, "report.sql")
    open(report, "w").write("SET work_mem = '64MB'; SELECT count(*) FROM (SELECT * FROM pgbench_accounts ORDER BY abalance, filler OFFSET 1) a;\n")
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def pgbench(*arguments):
        return subprocess.Popen(["pgbench", "-h", data, "-U", "postgres", *arguments, "postgres"], **quiet)

    def run():
        while not ending.is_set() and pgbench("-i", "-q", "-s", "10").wait():
            time.sleep(1)
        rounds = itertools.cycle([(2, None), (8, None), (24, None), (8, None), (2, report)])
        while not ending.is_set():
            sessions, script = next(rounds)
            more = ["-f", script, "-t", "2"] if script else ["-T", "20", "--rate", str(40 * sessions)]
            processes.append(pgbench("-n", "-c", str(sessions), "-j", "1", *more))
            processes[-1].wait()
            time.sleep(5)
    threading.Thread(target=run, daemon=True).start()


def gcc_make(name):
    """A program of files of all sizes, built from scratch every minute."""
    if not is_wanted(name):
        return
    directory = os.path.join(WORK, name)
    os.makedirs(directory)
    for file in range(12):
        functions = [f"int f{file}_{n}(int a) {{ switch (a) {{ " + " ".join(f"case {c}: return a * {c + n} + (a >> {c % 7});" for c in range(300))
                     + " } return a; }" for n in range(5 + 12 * file)]
        open(os.path.join(directory, f"part{file}.c"), "w").write("\n".join(functions) + "\n")
    open(os.path.join(directory, "Makefile"), "w").write("all: $(patsubst %.c,%.o,$(wildcard *.c))\n%.o: %.c\n\tgcc -O2 -c $< -o $@\n")
    by_time(name, False, ["sh", "-c", f"cd {directory}; while :; do rm -f *.o; make -j2; sleep 30; done"])


def value(bytes):
    return random.randbytes(bytes)


def start_all():
    python_server("python-keeps-each-request", "leaks", steady(4))
    python_server("python-keeps-each-request-of-a-day", "leaks", daily(3))
    python_server("python-lets-go", "fixed", steady(15))
    python_server("python-lets-go-under-a-ramp", "fixed", ramp(20))
    python_server("python-bounded-cache", "cache", steady(6))
    python_server("python-sawtooth", "sawtooth", steady(15))
    redis("redis-ever-new-keys", True, steady(10), [], lambda n: [("SET", f"k{n}", value(10_000))])
    redis("redis-ever-new-keys-of-a-day", True, daily(8), [], lambda n: [("SET", f"k{n}", value(10_000))])
    redis("redis-list-nobody-empties", True, steady(20), [], lambda n: [("RPUSH", "jobs", value(4_000))])
    redis("redis-few-keys", False, steady(20), [], lambda n: [("SET", f"k{n % 500}", value(10_000)), ("GET", f"k{n % 500}")])
    redis("redis-keys-that-expire", False, steady(15), [], lambda n: [("SETEX", f"k{n}", 20, value(10_000))])
    redis("redis-evicts", False, steady(25), ["--maxmemory", "24mb", "--maxmemory-policy", "allkeys-lru"],
          lambda n: [("SET", f"k{n}", value(10_000))])
    redis("redis-queue", False, daily(10), [], lambda n: [("RPUSH", "q", value(20_000)), ("LPOP", "q")])
    nginx("nginx-static")
    postgres("postgres-prepares-and-forgets", True, steady(8),
             lambda n: f"PREPARE p{n} AS SELECT {', '.join(f'{i} + $1' for i in range(40))};\n")
    postgres("postgres-selects", False, steady(15),
             lambda n: f"SELECT count(*), sum(g * {n}) FROM generate_series(1, 2000) g;\n")
    by_time("bash-array", True, ["bash", "-c", "while :; do for i in {1..40}; do a+=($RANDOM$RANDOM); done; sleep 0.05; done"])
    by_time("perl-hash", True, ["perl", "-e", "while (1) { $h{rand()} = 'x' x 500 for 1..20; select(undef, undef, undef, 0.1) }"])
    by_time("awk-lines", True, ["sh", "-c", "while :; do seq 100; sleep 0.3; done | awk '{ seen[NR] = $0 sprintf(\"%200s\", NR) }'"])
    by_time("python-log-kept", True, python("log = []\nwhile True:\n    log += ['line %d ' % i + 'x' * 80 for i in range(80)]\n    time.sleep(0.2)"))
    by_time("python-warms-up", False, python("kept = []\nfor i in range(120):\n    kept.append(bytearray(b'x' * 500_000))\n    time.sleep(1)\nwhile True: time.sleep(1)"))
    by_time("python-cache-that-fills", False, python(
        "cache = {}\nwhile True:\n    for i in range(20):\n        cache[int(random.expovariate(1 / 4000)) % 20_000] = b'x' * random.randint(2000, 4000)\n    time.sleep(0.1)"))
    by_time("python-batch-job", False, python("while True:\n    job = [bytearray(b'x' * 1_000_000) for _ in range(60)]\n    time.sleep(4)\n    del job\n    time.sleep(16)"))
    by_time("stress-vm", False, ["stress-ng", "--vm", "1", "--vm-bytes", "48M", "--vm-hang", "2", "--timeout", "0"])
    by_time("gzip-again-and-again", False, ["sh", "-c", "while :; do head -c 20000000 /dev/urandom | gzip -1 > out.gz; sleep 5; done"])
    by_time("sort-again-and-again", False, ["sh", "-c", "while :; do seq 400000 | sort -R > /dev/null; sleep 10; done"])


def start_histories():
    postgres_under_pgbench("postgres-pgbench")
    gcc_make("gcc-make")
    by_time("python-model", False, python("""
def load(megabytes):
    weights = []
    for _ in range(megabytes // 10):
        weights.append(bytearray(b'w' * 10_000_000))
        time.sleep(0.3)
    return weights
begin, weights = time.time(), load(300)
while True:
    if time.time() - begin > 240:
        newer = load(320)
        begin, weights = time.time(), newer
    size = int(random.paretovariate(1.5) * 4)
    batch = [bytearray(b'a' * 1_000_000) for _ in range(min(size, 250))]
    time.sleep(random.uniform(0.1, 0.6))
    del batch
    time.sleep(random.expovariate(2))"""))
    redis("redis-snapshots", False, steady(150), [],
          lambda n: [("SET", f"k{n % 20_000}", value(10_000))] + ([("BGSAVE",)] if n % 15_000 == 14_999 else []))
    by_time("xz-backups", False, ["sh", "-c", "while :; do for level in 6 6 6 8; do head -c 60000000 /dev/urandom | xz -T1 -$level > backup.xz; sleep 20; done; done"])
    by_time("sort-reports", False, ["sh", "-c", "while :; do for rows in 1000000 2000000 1000000 4000000; do seq $rows | shuf | sort -S 600M > /dev/null; sleep 15; done; done"])


def number(object, *names):
    for name in names:
        object = (object or {}).get(name)
    return "" if object is None else object


def main():
    os.makedirs(ROOT)
    os.makedirs(DIRECTORY, exist_ok=True)
    own = os.path.join(WORK, "agent.sock")
    agent = subprocess.Popen([MONITOR, "run", "--quiet", "--socket", own], stderr=open(os.path.join(WORK, "agent.log"), "w"))
    processes.append(agent)
    while not os.path.exists(own):
        time.sleep(0.1)
        if agent.poll() is not None:
            sys.exit(f"the agent ended: {os.path.join(WORK, 'agent.log')}")
    start_all()
    start_histories()
    files = {}
    for name, leaks in programs.items():
        files[name] = open(os.path.join(DIRECTORY, f"{name}.{'leak' if leaks else 'innocent'}.csv"), "w")
        files[name].write("timestamp,subject,working_set_bytes,anon_bytes,requests_total,oom_kills_total\n")
    end = time.time() + SECONDS
    above = ROOT.removeprefix(V1).removeprefix("/sys/fs/cgroup")
    while time.time() < end:
        time.sleep(1.0 - time.time() % 1.0)
        if sys.stderr.isatty():
            print(f"\r{end - time.time():4.0f} s ", end="", file=sys.stderr)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = unix(own)
        connection.request("GET", "/v1/cgroups?limit=100000")
        answer = json.load(connection.getresponse())
        connection.close()
        for group in answer["cgroups"]:
            above_it, _, name = group["path"].rpartition("/")
            if above_it != above or name not in files or number(group, "memory", "working_set_bytes") == "":
                continue
            anon = number(group, "memory", "anon_bytes")
            swap = number(group, "memory", "swap_bytes") or 0
            served = number(group, "requests", "requests_total") or ""
            kills = number(group, "memory", "events", "oom_kill")
            row = [int(time.time()), name, group["memory"]["working_set_bytes"], anon + swap, served, kills]
            files[name].write(",".join(map(str, row)) + "\n")
    for file in files.values():
        file.close()


try:
    main()
finally:
    ending.set()
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL) if os.getpgid(process.pid) == process.pid else process.terminate()
        except ProcessLookupError:
            pass
    for process in processes:
        process.wait()
    time.sleep(0.5)
    for group in glob.glob(os.path.join(ROOT, "*/")) + [ROOT]:
        try:
            for pid in open(os.path.join(group, "cgroup.procs")).read().split():
                os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)
            os.rmdir(group)
        except OSError as error:
            print(f"{group}: {error}", file=sys.stderr)
    shutil.rmtree(WORK, ignore_errors=True)
