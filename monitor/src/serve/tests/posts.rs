//! Marks, requests and resets: handed over, or refused.

use super::*;

#[tokio::test]
async fn a_mark_is_handed_over_and_told_as_it_was_understood() {
    let server = Server::start();
    let answer = server.post(MARKS, br#"{"step": 5, "labels": {"run": "a"}}"#).await;
    assert_eq!((answer.status, answer.kind.as_str()), (202, "application/json"));
    let told: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(told, json!({"step": 5, "epoch": null, "labels": {"run": "a"}}));
    let labels = Some([("run".to_owned(), "a".to_owned())].into());
    let told = server.inboxes.marks.take();
    assert_eq!((told.len(), told[0].by), (1, Some(own_id())));
    assert_eq!(told[0].mark, Mark { step: Some(5), epoch: None, labels });
    assert_eq!(server.post(MARKS, br#"{"step": 6, "pid": 20}"#).await.status, 202);
    assert_eq!(server.inboxes.marks.take()[0].by.map(|id| id.tgid), Some(Tgid(20)));
    assert_eq!(server.post(MARKS, br#"{"step": 6, "pid": 30}"#).await.status, 404, "it has ended");
}

#[tokio::test]
async fn marks_that_are_refused_are_problems() {
    let server = Server::start();
    let large = format!("{{\"step\": 1{}}}", " ".repeat(16 << 10));
    for (path, body, status, words) in [
        (MARKS, "{\"step\": \"five\"}", 400, "step takes a whole number"),
        (MARKS, "{", 400, "not JSON"),
        (MARKS, &large, 413, "at most 16384 bytes"),
        ("/v1/marks?no=1", "{\"step\": 1}", 400, "no"),
    ] {
        let answer = server.post(path, body.as_bytes()).await;
        assert_eq!((answer.status, answer.kind.as_str()), (status, "application/problem+json"), "{body:.40}");
        assert!(answer.body.contains(words), "{}", answer.body);
    }
    let answer = server.ask(&format!("GET {MARKS}")).await;
    assert_eq!((answer.status, answer.kind.as_str()), (405, "application/problem+json"));
    assert!(answer.body.contains("/v1/marks takes POST, not GET"), "{}", answer.body);
}

#[tokio::test]
async fn a_mark_that_finds_no_room_is_refused() {
    let server = Server::start();
    for tree in 0..WAITING {
        let key = ProcessId { tgid: Tgid(tree as u32 + 1), start_ns: 0 }.key();
        let told = Told { time: BootTime(0), by: None, mark: Mark { step: Some(1), ..Mark::default() } };
        server.inboxes.marks.post(Some(key), told).unwrap();
    }
    let answer = server.post(MARKS, b"{\"step\": 1}").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("too many marks are waiting: post it again"), "{}", answer.body);
    server.inboxes.marks.close();
    assert!(server.post(MARKS, b"{\"step\": 1}").await.body.contains("the agent is ending"));
}

#[tokio::test]
async fn detectors_are_told_to_begin_anew_with_a_tree() {
    let server = Server::start();
    let answer = server.post(RESET, b"{\"pid\": 11}").await;
    assert_eq!((answer.status, serde_json::from_str::<Value>(&answer.body).unwrap()), (202, json!({"tree": 10})));
    assert_eq!(server.inboxes.resets.take().iter().map(|tree| tree.tgid.0).collect::<Vec<_>>(), [10]);
    for (body, status, words) in [
        ("{\"pid\": 30}", 404, "no process 30 runs"),
        ("{\"pids\": 10}", 400, "the body is not such as"),
        ("[", 400, "the body is not such as"),
    ] {
        let answer = server.post(RESET, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(answer.body.contains(words), "{}", answer.body);
    }
    assert_eq!(server.inboxes.resets.take(), []);
}

#[tokio::test]
async fn requests_are_counted_for_who_posts_them_or_whom_root_names() {
    let server = Server::of(snapshot_with_us());
    let answer = server.post(REQUESTS, br#"{"count": 3, "labels": {"id": "a"}}"#).await;
    let own = std::process::id();
    assert_eq!((answer.status, serde_json::from_str(&answer.body).unwrap()), (202, json!({"pid": own, "count": 3})));
    assert_eq!(server.post(REQUESTS, br#"{"count": 4, "pid": 20}"#).await.status, 202);
    let told = server.inboxes.tallies.take();
    let of = |tally: &Tally| (tally.by.tgid.0, tally.count, tally.labels.len());
    assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [(own, 3, 1), (20, 4, 0)]);
    for (body, status, words) in [
        ("{\"count\": 1, \"pid\": 30}", 404, "no process 30 runs"),
        ("{\"count\": 0}", 400, "count is missing or 0"),
        ("{\"n\": 1}", 400, "there is no field"),
    ] {
        let answer = server.post(REQUESTS, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(answer.body.contains(words), "{}", answer.body);
    }
    assert_eq!(server.inboxes.tallies.take(), []);
    server.inboxes.close();
    assert!(server.post(REQUESTS, b"{\"count\": 1}").await.body.contains("the agent is ending"));
}

#[tokio::test]
async fn on_the_workloads_socket_requests_are_of_the_own_tree() {
    let server = Server::for_workloads(snapshot_with_us(), Duration::ZERO);
    assert_eq!(server.post(REQUESTS, b"{\"count\": 1}").await.status, 202);
    let refused = server.post(REQUESTS, b"{\"count\": 1, \"pid\": 20}").await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(server.inboxes.tallies.take().len(), 1);
}
