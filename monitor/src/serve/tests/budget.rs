//! Memory budgets.

use super::*;

#[tokio::test]
async fn a_budget_has_its_names_and_null_where_nothing_is_known() {
    let server = Server::of(fixtures::snapshot_with_memory());
    let all = server.json("/v1/budget").await;
    assert_eq!((&all["left_out"], &all["budgets"]), (&json!(0), &json!([])), "nobody serves");
    let told = server.json("/v1/budget?pid=11").await;
    assert_eq!(told["time_ns"], 100_000_000_000_u64);
    let budget = &told["budgets"][0];
    let remarks = budget["remarks"].as_array().unwrap();
    assert!(remarks.iter().any(|remark| remark.as_str().unwrap().contains("2 of 2 processes")), "{remarks:?}");
    assert_eq!(
        *budget,
        json!({
            "tree": 10, "command": "python3 train.py --epochs 3", "cgroup": "/apps/a", "workers": 1,
            "limit_bytes": 8 << 20, "limit_source": "host", "others_bytes": 20 << 20, "baseline_bytes": null,
            "worker": {"private_bytes": null, "shared_bytes": null, "requests_peak": 0}, "per_request": null,
            "concurrent_requests_peak": 0, "one_more_worker_bytes": null, "most_workers": null,
            "most_threads_per_worker": null, "margin_bytes": null, "max_requests": null, "preload_saves_bytes": null,
            "remarks": remarks,
        })
    );
    assert_eq!(server.json("/v1/budget?pid=10").await, told);
    for (query, status) in [("pid=30", 404), ("pid=x", 400), ("pid=10&pid=11", 400), ("tree=10", 400)] {
        assert_eq!(server.ask(&format!("GET /v1/budget?{query}")).await.status, status, "{query}");
    }
}
