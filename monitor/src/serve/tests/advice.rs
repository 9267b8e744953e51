//! What memory everybody should get.

use super::*;
use std::time::SystemTime;

#[tokio::test]
async fn recommendations_are_told_by_any_policy_and_wrong_ones_are_refused() {
    let server = Server::of(fixtures::snapshot());
    let told = server.json("/v1/recommendations").await;
    assert_eq!((&told["policy"], &told["recommendations"]), (&json!("rules"), &json!([])), "nothing is known yet");
    let advisor = Arc::clone(&server.pictures.borrow().advisor);
    for minute in 0..3 {
        let snapshot = Snapshot { tick: Duration::from_secs(60), ..fixtures::grown(60 * minute, 100) };
        advisor.take(&snapshot, SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minute));
    }
    for (path, sizes) in [
        ("/v1/recommendations", json!({ "request_bytes": 160 << 20, "limit_bytes": 240 << 20 })),
        ("/v1/recommendations?policy=krr", json!({ "request_bytes": 128 << 20, "limit_bytes": 128 << 20 })),
    ] {
        let told = server.json(path).await;
        let advice = &told["recommendations"][0];
        assert_eq!(advice["recommended"], sizes, "{told}");
        assert_eq!((&advice["current"], &advice["proposed"]), (&json!(null), &json!(true)));
        assert_eq!(advice["observed"]["window_seconds"], 120.0);
    }
    for (path, words) in [
        ("/v1/recommendations?policy=best", "policy=best: it takes rules, vpa, krr, peaks"),
        ("/v1/recommendations?limit=3", "limit"),
    ] {
        let answer = server.ask(&format!("GET {path}")).await;
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains(words), "{}", answer.body);
    }
}
