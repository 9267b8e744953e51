//! What is out of the ordinary, and who is told.

use super::*;

#[tokio::test]
async fn alerts_are_told_with_what_they_rest_on_and_who_is_told() {
    let server = Server::of(fixtures::snapshot_with_memory());
    let told = server.json("/v1/alerts").await;
    let of = |rule: &str| told["alerts"].as_array().unwrap().iter().find(|alert| alert["rule"] == rule).cloned();
    let alert = of("memory_pressure").unwrap();
    assert_eq!(
        (&alert["state"], &alert["severity"], &alert["silenced"]),
        (&json!("firing"), &json!("warning"), &json!(false))
    );
    assert_eq!((&alert["subject"]["kind"], &alert["threshold"]), (&json!("host"), &json!(0.3)));
    assert_eq!(alert["evidence"]["memory"]["limit_bytes"], 64 << 20);
    assert_eq!(of("oom_kill").unwrap()["evidence"]["oom"], json!({"pid": 30, "command": "hog", "kills": 1}));
    let sink = json!({
        "name": "log", "sent_total": 0, "failures_total": 0, "dropped_total": 0, "queued": 0, "error": null,
    });
    assert_eq!((&told["left_out"], &told["sinks"]), (&json!(0), &json!([sink])));
}
