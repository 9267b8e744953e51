//! The whole server on a real socket, asked by plain bytes: what is answered, to whom, and how it ends.

mod advice;
mod alerts;
mod budget;
mod posts;
mod workloads;

use super::{
    Claim, Inboxes, claim, claim_for_workloads, fixtures,
    routes::{ENDPOINTS, MARKS, Origin, REQUESTS, RESET, STATS, Shared},
    server,
};
use crate::{
    alert::SinkStatus,
    coverage::State,
    event::{Event, Kind},
    event_log::EventLog,
    gpu::GpuStanding,
    ids::{CgroupId, ProcessId, TICK_NS, Tgid},
    mark::{Mark, Told, WAITING},
    model::snapshot::{Process, Resident, Snapshot},
    picture::Picture,
    source::Source,
    tally::Tally,
    time::BootTime,
};
use axum::body::Bytes;
use serde_json::{Value, json};
use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// A server that answers from the fixtures.
struct Server {
    socket: PathBuf,
    events: Arc<EventLog>,
    inboxes: Inboxes,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    pictures: watch::Sender<Arc<Picture>>,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        Self::of(fixtures::snapshot())
    }

    fn of(snapshot: Snapshot) -> Self {
        Self::at(|path| claim(path, None).unwrap(), snapshot, Duration::from_millis(20))
    }

    /// The socket for workloads, where who is not known yet waits for so long.
    fn for_workloads(snapshot: Snapshot, patience: Duration) -> Self {
        Self::at(|path| claim_for_workloads(path).unwrap(), snapshot, patience)
    }

    fn at(claim: impl Fn(&Path) -> Claim, snapshot: Snapshot, patience: Duration) -> Self {
        let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let socket = directory.path().join("m.sock");
        let listener = claim(&socket).listen().unwrap();
        let (pictures, receiver) = watch::channel(Arc::new(fixtures::picture(snapshot)));
        let (stop, shutdown) = watch::channel(false);
        let (events, inboxes) = (Arc::new(EventLog::default()), Inboxes::default());
        let shared = Shared {
            pictures: receiver,
            events: Arc::clone(&events),
            doctor: Bytes::from_static(b"{\"facts\":[]}"),
            sinks: [Arc::new(SinkStatus::of("log"))].into(),
            origin: Origin::Live { recording: None, inboxes: inboxes.clone() },
            metrics_top: 20,
            socket: Path::new("/where/all/is.sock").into(),
            patience,
            shutdown: shutdown.clone(),
        };
        let task = tokio::spawn(server::run(listener, shared, shutdown));
        Self { socket, events, inboxes, stop, task, pictures, _directory: directory }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends a request line and returns the whole answer.
    async fn ask(&self, request: &str) -> Answer {
        let mut stream = self.connect().await;
        let head = format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        Answer::read(stream).await
    }

    /// Posts a body and returns the whole answer.
    async fn post(&self, path: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        Answer::read(stream).await
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.ask(&format!("GET {path}")).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_eq!(answer.kind, "application/json");
        serde_json::from_str(&answer.body).unwrap()
    }
}

struct Answer {
    status: u16,
    kind: String,
    body: String,
}

impl Answer {
    async fn read(mut stream: UnixStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let field =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default();
        let chunked = field("transfer-encoding") == "chunked";
        Self {
            status: head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap()),
            kind: field("content-type").to_owned(),
            body: if chunked { unchunk(body) } else { body.to_owned() },
        }
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    whole
}

fn event(id: u64) -> Event {
    Event { time_ns: BootTime(id), kind: Kind::CgroupMade { id: CgroupId(id), path: "/a".into() } }
}

#[tokio::test]
async fn every_endpoint_listed_answers() {
    let server = Server::start();
    let index = server.json("/").await;
    assert_eq!(index["endpoints"].as_array().unwrap().len(), ENDPOINTS.len());
    for (path, _) in ENDPOINTS.iter().filter(|(path, _)| ![MARKS, REQUESTS, RESET].contains(path)) {
        // Whoever asks here is not of the made-up machine, and so has no tree.
        let status = if *path == STATS { 503 } else { 200 };
        assert_eq!(server.ask(&format!("GET {path}")).await.status, status, "{path}");
        assert_eq!(server.ask(&format!("GET {path}?no=1")).await.status, 400, "{path}");
        assert_eq!(server.ask(&format!("POST {path}")).await.status, 405, "{path}");
    }
    assert_eq!(server.json("/v1/doctor").await, json!({"facts": [], "gpu": {"state": "live", "reason": null}}));
}

/// This process, as the kernel tells of it.
fn own_id() -> ProcessId {
    let stat = procfs::process::Process::myself().unwrap().stat().unwrap();
    ProcessId { tgid: Tgid(std::process::id()), start_ns: stat.starttime * TICK_NS }
}

/// The made-up machine with this process in the tree of process 10.
fn snapshot_with_us() -> Snapshot {
    let mut snapshot = fixtures::snapshot_with_memory();
    let us = Process { id: own_id(), ..(*snapshot.processes[1]).clone() };
    let place = snapshot.running().partition_point(|process| process.id.key() < us.id.key());
    snapshot.processes.insert(place, Arc::new(us));
    snapshot
}

#[tokio::test]
async fn findings_are_told_with_what_they_rest_on() {
    let server = Server::start();
    let told = server.json("/v1/findings").await;
    assert_eq!((&told["watched"], &told["left_out"]), (&json!(1), &json!(0)));
    let finding = told["findings"].as_array().unwrap().iter().find(|one| one["detector"] == "leak").unwrap();
    assert_eq!(
        finding["subject"],
        json!({
            "kind": "tree", "pid": 10, "tree": 10, "command_line": "python3 train.py --epochs 3", "cgroup": "/apps/a",
            "container": null, "gpu": null, "gpu_uuid": null,
        })
    );
    assert_eq!((&finding["severity"], &finding["evidence"]["leak"]["verdict"]), (&json!("warning"), &json!("leak")));
    let growth = &finding["bytes_per_hour"];
    assert!(growth["low"].as_f64() <= growth["value"].as_f64() && growth["value"].as_f64() <= growth["high"].as_f64());
    assert_eq!(finding["bytes_per_1000_requests"], Value::Null, "requests are not counted");
    assert!(finding["since_ns"].as_u64() < told["time_ns"].as_u64());
    assert!(finding["evidence"]["time_ns"].as_u64() <= told["time_ns"].as_u64());
}

#[tokio::test]
async fn errors_are_problem_documents() {
    let server = Server::start();
    let answer = server.ask("GET /v2/trees").await;
    assert_eq!((answer.status, answer.kind.as_str()), (404, "application/problem+json"));
    let problem: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["title"], "Not Found");
    assert_eq!(problem["detail"], "there is no /v2/trees: GET / lists what there is");
    let answer = server.ask("GET /v1/trees?sort=%ff").await;
    assert_eq!((answer.status, answer.kind.as_str()), (400, "application/problem+json"));
    let answer = server.ask("DELETE /v1/trees").await;
    assert_eq!((answer.status, answer.kind.as_str()), (405, "application/problem+json"));
}

#[tokio::test]
async fn a_process_has_its_names_and_null_where_nothing_counts() {
    let list = Server::start().json("/v1/processes?pid=10").await;
    assert_eq!((&list["total"], &list["truncated"]), (&json!(1), &json!(false)));
    let process = &list["processes"][0];
    assert_eq!(process["pid"], 10);
    assert_eq!(process["parent_pid"], 1);
    assert_eq!(process["start_time_ns"], 10_000_000_000_u64);
    assert_eq!(process["command_line"], "python3 --pid 10");
    assert_eq!(process["cgroup"], "/apps/a");
    assert_eq!(process["state"], "running");
    assert_eq!(process["exited_time_ns"], Value::Null);
    let faults = &process["page_faults"];
    assert_eq!((&faults["user_total"], &faults["kernel_total"]), (&json!(3), &json!(1)));
    assert_eq!(faults["user_write_not_present_total"], 3);
    assert_eq!(faults["user_read_present_total"], 0, "nothing of this kind, but it counts");
    assert_eq!(faults["kernel_read_present_total"], 1);
    assert_eq!(faults["per_second"], 100.0);
    let calls = process["address_space"].as_object().unwrap();
    assert_eq!(calls.len(), 17);
    assert!(calls.values().all(Value::is_null), "its source is unavailable: {calls:?}");
    let io = &process["block_io"];
    assert_eq!((&io["read_ops_total"], &io["read_bytes_total"]), (&json!(2), &json!(8192)));
    assert_eq!((&io["errors_total"], &io["wait_seconds_total"]), (&json!(1), &json!(1.5)));
    assert_eq!(io["read_latency"]["count"], 2);
    assert!(io["read_latency"]["p50_ns"].as_u64() < io["read_latency"]["max_ns"].as_u64());
    assert_eq!(
        io["write_latency"],
        json!({"count": 0, "p50_ns": null, "p90_ns": null, "p99_ns": null, "max_ns": null})
    );
}

#[tokio::test]
async fn a_gpu_has_its_names_and_null_where_it_does_not_tell() {
    let server = Server::start();
    let list = server.json("/v1/gpus?sort=power_watts").await;
    assert_eq!((&list["total"], &list["state"], &list["reason"]), (&json!(1), &json!("live"), &Value::Null));
    let gpu = &list["gpus"][0];
    assert_eq!((&gpu["index"], &gpu["uuid"], &gpu["name"]), (&json!(0), &json!("GPU-1"), &json!("NVIDIA H100")));
    assert_eq!((&gpu["utilization_ratio"], &gpu["memory_utilization_ratio"]), (&json!(0.37), &Value::Null));
    assert_eq!((&gpu["memory_ratio"], &gpu["memory_used_bytes"]), (&json!(0.25), &json!(20_u64 << 30)));
    assert_eq!((&gpu["power_watts"], &gpu["throttle_reasons"]), (&Value::Null, &Value::Null));
    assert_eq!((&gpu["sm_clock_hertz"], &gpu["age_seconds"]), (&json!(1_980_000_000), &json!(1.0)));
    let processes = json!([{"pid": 10, "memory_bytes": 6_u64 << 30}]);
    assert_eq!(gpu["processes"], processes);
    assert_eq!(
        gpu["mig"]["instances"],
        json!([{
            "index": 0, "uuid": "MIG-1", "parent_uuid": "GPU-1", "profile": "1g.10gb",
            "memory_used_bytes": 6_u64 << 30, "memory_total_bytes": 8_u64 << 30, "memory_ratio": 0.75,
            "processes": processes
        }])
    );
    assert_eq!(server.json("/v1/snapshot").await["gpus"][0], *gpu);
    assert_eq!(server.json("/v1/trees").await.get("state"), None, "only lists that no source counts for");
}

#[tokio::test]
async fn a_lost_gpu_degrades_health_and_none_does_not() {
    let standing = |failing| GpuStanding { state: State::Unavailable, reason: Some("no driver".to_owned()), failing };
    let health = |gpu| async { Server::of(Snapshot { gpu, ..fixtures::snapshot() }).json("/v1/health").await };
    let (without, lost) = (health(standing(false)).await, health(standing(true)).await);
    assert_eq!(without["gpu"], json!({"state": "unavailable", "reason": "no driver"}));
    let tells = |health: &Value| health["reasons"].as_array().unwrap().contains(&json!("gpu: no driver"));
    assert!(!tells(&without) && tells(&lost), "{without}\n{lost}");
}

#[tokio::test]
async fn an_exited_process_tells_how_it_ended() {
    let list = Server::start().json("/v1/processes?pid=30").await;
    let process = &list["processes"][0];
    assert_eq!(process["state"], "exited");
    assert_eq!((&process["exit_code"], &process["exit_signal"]), (&Value::Null, &json!(9)));
    assert_eq!((&process["oom_killed"], &process["exited_time_ns"]), (&json!(true), &json!(99_000_000_000_u64)));
    assert_eq!(
        (&process["cgroup"], &process["cgroup_id"], &process["parent_pid"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(process["block_io"]["read_ops_total"], 0, "no I/O is a zero where block_io counts");
}

#[tokio::test]
async fn trees_cgroups_and_devices_have_their_names() {
    let server = Server::start();
    let trees = server.json("/v1/trees?sort=page_faults.per_second&limit=1").await;
    assert_eq!((&trees["total"], &trees["truncated"]), (&json!(2), &json!(true)));
    assert_eq!(trees["trees"].as_array().unwrap().len(), 1);
    let tree = &trees["trees"][0];
    assert_eq!((&tree["pid"], &tree["command"]), (&json!(20), &json!("fio")));
    assert_eq!((&tree["processes_running"], &tree["processes_exited_total"]), (&json!(2), &json!(1)));
    let cgroups = server.json("/v1/cgroups").await;
    let cgroup = &cgroups["cgroups"][2];
    assert_eq!((&cgroup["path"], &cgroup["id"], &cgroup["hierarchy"]), (&json!("/apps/a"), &Value::Null, &json!("v2")));
    assert_eq!((&cgroup["removed"], &cgroup["processes_running"]), (&json!(false), &json!(3)));
    let devices = server.json("/v1/block_devices").await;
    let device = devices["block_devices"][0].as_object().unwrap();
    assert_eq!((&device["name"], &device["device"]), (&json!("nvme0n1"), &json!("259:3")));
    assert_eq!(device.len(), 3, "of the groups only block_io");
}

#[tokio::test]
async fn a_container_is_told_on_all_that_is_in_it() {
    let server = Server::of(fixtures::snapshot_with_container());
    let container = json!({
        "id": fixtures::CONTAINER_ID, "runtime": "containerd", "name": "nginx", "pod": "web-0", "namespace": "shop",
        "pod_uid": "6f1d3c2e-0b7a-4f5e-9c1d-2a3b4c5d6e7f", "image": null,
    });
    let whole = server.json("/v1/snapshot").await;
    for inside in [&whole["processes"][2], &whole["trees"][1], &whole["cgroups"][3]] {
        assert_eq!(inside["container"], container);
        assert_eq!(inside["unit"], format!("cri-containerd-{}.scope", fixtures::CONTAINER_ID));
        assert_eq!(inside["slice"], "kubepods.slice");
    }
    for outside in [&whole["processes"][0], &whole["trees"][0], &whole["cgroups"][0]] {
        assert_eq!(
            (&outside["container"], &outside["unit"], &outside["slice"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
        assert!(outside.as_object().unwrap().contains_key("container"));
    }
}

#[tokio::test]
async fn a_snapshot_is_everything_at_once() {
    let whole = Server::start().json("/v1/snapshot").await;
    assert_eq!(whole["time_ns"], 100_000_000_000_u64);
    assert_eq!(whole["tick_seconds"], 1.0);
    assert_eq!(whole["folded_processes_total"], 4);
    assert_eq!(whole["host"]["page_faults"]["user_total"], 7);
    for (list, length) in [("processes", 4), ("trees", 2), ("cgroups", 3), ("block_devices", 1)] {
        assert_eq!(whole[list].as_array().unwrap().len(), length, "{list}");
    }
    let coverage = &whole["coverage"];
    assert_eq!((&coverage["page_fault"]["state"], &coverage["page_fault"]["rung"]), (&json!("live"), &json!("tp_btf")));
    assert_eq!(coverage["address_space"]["refused"][0]["reason"], "this kernel has no BTF");
    assert_eq!(
        (&coverage["lifecycle"]["lost_total"], &coverage["lifecycle"]["lost"]["ring_full"]),
        (&json!(3), &json!(3))
    );
}

#[tokio::test]
async fn rates_are_null_until_there_are_two_snapshots() {
    let server = Server::of(Snapshot { tick: Duration::ZERO, ..fixtures::snapshot() });
    let process = &server.json("/v1/processes?pid=10").await["processes"][0];
    assert_eq!(process["page_faults"]["per_second"], Value::Null);
    assert_eq!(process["page_faults"]["user_total"], 3);
}

#[tokio::test]
async fn health_says_why_it_is_degraded_and_what_the_agent_costs() {
    let health = Server::start().json("/v1/health").await;
    assert_eq!(health["status"], "degraded");
    let reasons: Vec<_> = health["reasons"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(reasons[..2], ["lifecycle has lost 3", "address_space is unavailable (fentry: this kernel has no BTF)"]);
    assert!(reasons[2].starts_with("the last snapshot is "), "{reasons:?}");
    assert_eq!(health["pid"], std::process::id());
    assert_eq!(health["cost"]["resident_bytes"], 6 << 20);
    assert_eq!(health["cost"]["programs"][0]["mean_ns"].as_f64().map(f64::round), Some(50.0));
    assert_eq!(health["cost"]["programs"][1]["mean_ns"], Value::Null);
}

#[tokio::test]
async fn a_source_that_the_kernel_is_too_old_for_is_null_and_no_fault() {
    let mut snapshot = fixtures::snapshot();
    let mut coverage = Arc::unwrap_or_clone(snapshot.coverage);
    for source in coverage.0.iter_mut().filter(|source| source.source == Source::Requests) {
        (source.state, source.rung, source.too_old) = (State::Unavailable, None, true);
    }
    snapshot.coverage = Arc::new(coverage);
    let server = Server::of(snapshot);
    let health = server.json("/v1/health").await;
    assert_eq!(health["coverage"]["requests"]["too_old"], true);
    assert!(!health["reasons"].to_string().contains("requests"), "{}", health["reasons"]);
    let mut requests = server.json("/v1/processes?pid=10").await["processes"][0]["requests"].clone();
    assert_eq!(requests.as_object_mut().unwrap().remove("posted_total"), Some(json!(0)), "clients tell it");
    assert!(requests.as_object().unwrap().values().all(Value::is_null), "{requests}");
}

#[tokio::test]
async fn what_is_in_memory_comes_with_its_error_once_for_each_process() {
    let mut snapshot = fixtures::snapshot();
    let resident = |processes| Some(Resident { bytes: [4096, 8192, 0, 0], processes });
    Arc::make_mut(&mut snapshot.processes[0]).subject.resident = resident(1);
    Arc::make_mut(&mut snapshot.trees[0]).subject.resident = resident(3);
    let server = Server::of(snapshot);
    let process = &server.json("/v1/processes?pid=10").await["processes"][0]["resident"];
    assert_eq!((&process["file_bytes"], &process["anon_bytes"]), (&json!(4096), &json!(8192)));
    assert_eq!(process["error_bytes"], 256 << 10);
    assert_eq!(server.json("/v1/trees").await["trees"][0]["resident"]["error_bytes"], 3 * (256 << 10));
    let unknown = &server.json("/v1/processes?pid=20").await["processes"][0]["resident"];
    assert_eq!((&unknown["anon_bytes"], &unknown["error_bytes"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn a_long_list_comes_whole() {
    let mut snapshot = fixtures::snapshot();
    let one = snapshot.processes[0].clone();
    snapshot.processes = vec![one; 5000];
    let server = Server::of(snapshot);
    let list = server.json("/v1/processes?limit=100000").await;
    assert_eq!((list["processes"].as_array().unwrap().len(), &list["truncated"]), (5000, &json!(false)));
    let list = server.json("/v1/processes").await;
    assert_eq!((list["processes"].as_array().unwrap().len(), &list["truncated"]), (1000, &json!(true)));
}

#[tokio::test]
async fn events_end_unless_followed() {
    let server = Server::start();
    (1..=3).for_each(|id| server.events.push(event(id)));
    let answer = server.ask("GET /v1/events").await;
    assert_eq!(answer.kind, "application/x-ndjson");
    let lines: Vec<Value> = answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0], json!({"time_ns": 1, "event": "cgroup_made", "id": 1, "path": "/a"}));
}

#[tokio::test]
async fn a_follower_gets_what_comes_and_a_slow_one_is_told_what_it_lost() {
    let server = Server::start();
    server.events.push(event(1));
    let mut stream = server.connect().await;
    stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let seen = async |lines: &mut tokio::io::Lines<BufReader<UnixStream>>, text: &str| {
        timeout(Duration::from_secs(5), async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap();
                if line.contains(text) {
                    return line;
                }
            }
        })
        .await
        .unwrap()
    };
    seen(&mut lines, "\"time_ns\":1,").await;
    server.events.push(event(2));
    seen(&mut lines, "\"time_ns\":2,").await;
    // More than the channel holds, without giving the server's task a turn.
    (3..5000).for_each(|id| server.events.push(event(id)));
    let lost = seen(&mut lines, "\"event\":\"lost\"").await;
    let lost: Value = serde_json::from_str(&lost).unwrap();
    let next: Value = serde_json::from_str(&seen(&mut lines, "time_ns").await).unwrap();
    assert_eq!(lost["count"].as_u64().unwrap() + 3, next["time_ns"].as_u64().unwrap());
}

#[tokio::test]
async fn the_end_lets_followers_go_and_removes_the_socket() {
    let server = Server::start();
    let mut stream = server.connect().await;
    stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let _idle = server.connect().await;
    let mut first = [0; 1];
    stream.read_exact(&mut first).await.unwrap();
    let asked = Instant::now();
    server.stop.send(true).unwrap();
    let answer = Answer::read(stream).await;
    assert!(answer.body.is_empty());
    timeout(Duration::from_secs(4), server.task).await.unwrap().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert!(!server.socket.exists());
}

#[tokio::test]
async fn too_many_connections_are_told_so() {
    let server = Server::start();
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    let answer = server.ask("GET /v1/health").await;
    assert_eq!((answer.status, answer.kind.as_str()), (503, "application/problem+json"));
    // Who is still saying what it wants is heard out, or it would never read why not.
    let mut late = server.connect().await;
    late.write_all(b"POST /v1/marks HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    late.write_all(b"{\"step\": 1}").await.unwrap();
    assert_eq!(Answer::read(late).await.status, 503);
    drop(held);
    // Their places come free once the server has seen them go.
    timeout(Duration::from_secs(5), async {
        while server.ask("GET /v1/health").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn who_never_asks_is_let_go() {
    let server = Server::start();
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET /v1/health HTTP/1.1\r\nhost").await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(8), silent.read_to_end(&mut rest)).await.expect("silent").unwrap();
    timeout(Duration::from_secs(8), slow.read_to_end(&mut rest)).await.expect("slow").unwrap();
}
