//! The socket where everybody asks about its own process tree.

use super::*;

#[tokio::test]
async fn on_the_workloads_socket_a_process_asks_about_its_own_tree_and_nothing_else() {
    let server = Server::for_workloads(snapshot_with_us(), Duration::ZERO);
    let own = server.json(STATS).await;
    assert_eq!((&own["tree"], &own["total"], &own["truncated"]), (&json!(10), &json!(3), &json!(false)));
    let pids: Vec<_> = own["processes"].as_array().unwrap().iter().filter_map(|p| p["pid"].as_u64()).collect();
    assert_eq!(pids, [10, 11, u64::from(std::process::id())]);
    assert_eq!(server.json("/v1/stats?pid=11").await, own);
    let mut refusals = Vec::new();
    for pid in [20, 30, 4_194_304] {
        let answer = server.ask(&format!("GET {STATS}?pid={pid}")).await;
        assert_eq!((answer.status, answer.kind.as_str()), (403, "application/problem+json"), "{pid}");
        refusals.push(answer.body.replace(&pid.to_string(), "PID"));
    }
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "who is not there is told of otherwise: {refusals:?}");
    for path in ENDPOINTS
        .iter()
        .map(|(path, _)| *path)
        .filter(|path| ![STATS, MARKS, REQUESTS, RESET].contains(path))
        .chain(["/"])
    {
        let answer = server.ask(&format!("GET {path}")).await;
        assert_eq!((answer.status, answer.kind.as_str()), (403, "application/problem+json"), "{path}");
        assert!(answer.body.contains("is told at /where/all/is.sock only"), "{}", answer.body);
    }
    let nowhere = server.ask("GET /v2/trees").await;
    assert_eq!(nowhere.status, 404);
    assert!(
        nowhere.body.contains("but /v1/stats, /v1/marks, /v1/requests and /v1/detectors/reset")
            && nowhere.body.contains("/where/all/is.sock")
    );
    assert_eq!(server.ask("POST /v1/stats").await.status, 405);
}

#[tokio::test]
async fn on_the_workloads_socket_a_mark_is_of_who_posts_it() {
    let server = Server::for_workloads(snapshot_with_us(), Duration::ZERO);
    assert_eq!(server.post(MARKS, br#"{"step": 5}"#).await.status, 202);
    assert_eq!(server.inboxes.marks.take()[0].by, Some(own_id()));
    let refused = server.post(MARKS, br#"{"step": 5, "pid": 20}"#).await;
    assert_eq!((refused.status, refused.kind.as_str()), (403, "application/problem+json"));
    assert_eq!(server.inboxes.marks.take(), []);
}

#[tokio::test]
async fn who_is_in_no_snapshot_yet_waits_for_the_next() {
    let server = Server::for_workloads(fixtures::snapshot_with_memory(), Duration::from_millis(20));
    let answer = server.ask(&format!("GET {STATS}")).await;
    assert_eq!((answer.status, answer.kind.as_str()), (503, "application/problem+json"));
    let words = format!("process {}, which asks, is in no snapshot yet", std::process::id());
    assert!(answer.body.contains(&words), "{}", answer.body);
    let server = Server::for_workloads(fixtures::snapshot_with_memory(), Duration::from_secs(20));
    let (request, asked) = (format!("GET {STATS}"), Instant::now());
    let (answer, ()) = tokio::join!(server.ask(&request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.pictures.send_replace(Arc::new(fixtures::picture(snapshot_with_us())));
    });
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(asked.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_connection_to_the_workloads_socket_serves_one_request() {
    let server = Server::for_workloads(snapshot_with_us(), Duration::ZERO);
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /v1/stats HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/stats HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap().matches("HTTP/1.1 200 OK").count(), 1);
}
