//! What fits below a limit: sums of a budget's parts. Requests count with the high end of their interval, and each worker with
//! as many as one had in flight at most: all may be at their peak at once.

use serde::Serialize;

/// The jitter of max-requests is one so manyth of it, so that workers are not all restarted at once: 5 %.
const JITTER_PART: u64 = 20;

/// The parts of a tree's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// All that may be used.
    pub(super) limit: u64,
    /// What does not go with workers: the root, what all share, and what others use below the same limit.
    pub(super) fixed: u64,
    /// Workers; 0 where the root serves by itself.
    pub(super) workers: u64,
    /// What each worker has for itself while it rests.
    pub(super) private: u64,
    /// What a request in flight holds; 0 where that is not known.
    pub(super) request: u64,
    /// The most requests that a worker, or the root that serves by itself, had in flight.
    pub(super) requests: u64,
}

/// After how many requests a worker is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MaxRequests {
    /// So many.
    pub requests: u64,
    /// And up to so many more, by chance, so that workers are not all replaced at once.
    pub jitter: u64,
}

impl Parts {
    /// What one more worker takes with its requests.
    pub(super) fn one_worker(&self) -> u64 {
        self.private.saturating_add(self.request.saturating_mul(self.requests))
    }

    /// What so many workers take with all else, each with so many requests in flight.
    pub(super) fn need(&self, workers: u64, requests: u64) -> u64 {
        let each = self.private.saturating_add(self.request.saturating_mul(requests));
        self.fixed.saturating_add(workers.saturating_mul(each))
    }

    /// What is left when all are at their peak; below zero where that does not fit.
    pub(super) fn margin(&self) -> i64 {
        let margin = i128::from(self.limit) - i128::from(self.need(self.servers(), self.requests));
        i64::try_from(margin).unwrap_or(i64::MIN)
    }

    /// The most workers that fit; none where it has none, or where they take nothing.
    pub(super) fn most_workers(&self) -> Option<u64> {
        let each = Some(self.one_worker()).filter(|&each| each > 0 && self.workers > 0)?;
        Some(self.limit.saturating_sub(self.fixed) / each)
    }

    /// The most requests in flight of each worker that fit; none where it is not known what they hold.
    pub(super) fn most_requests(&self) -> Option<u64> {
        let request = Some(self.request).filter(|&request| request > 0)?;
        let for_each = self.limit.saturating_sub(self.fixed) / self.servers();
        Some(for_each.saturating_sub(self.private) / request)
    }

    /// The max-requests that keeps a leak of so many bytes a request below the limit, if all workers reach it at once, in two
    /// digits; none where not even one request fits. The private part is to be that of a worker that has just begun.
    pub(super) fn max_requests(&self, leaked_bytes: f64) -> Option<MaxRequests> {
        let left = u64::try_from(self.margin()).ok()? / self.servers();
        let served = (left as f64 / leaked_bytes) as u64;
        let requests = two_digits((u128::from(served) * 20 / 21) as u64);
        (requests > 0).then_some(MaxRequests { requests, jitter: requests / JITTER_PART })
    }

    /// Processes that serve.
    fn servers(&self) -> u64 {
        self.workers.max(1)
    }
}

/// The first two digits of a number, and zeros.
fn two_digits(number: u64) -> u64 {
    let mut unit = 1;
    while number / unit >= 100 {
        unit *= 10;
    }
    number / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// The memory optimisation guide's: 800 MB a worker, 200 MB a request, 4 threads, 4 GB.
    fn guides() -> Parts {
        Parts { limit: 4000, fixed: 0, workers: 1, private: 800, request: 200, requests: 4 }
    }

    #[test]
    fn the_guides_budget_comes_to_what_the_guide_says() {
        let parts = guides();
        assert_eq!((parts.one_worker(), parts.margin()), (1600, 2400));
        assert_eq!((parts.most_workers(), parts.most_requests()), (Some(2), Some(16)));
        // 2400 MB are left for the leak, and 1 MB leaks each 1000 requests.
        assert_eq!(parts.max_requests(2.0), Some(MaxRequests { requests: 1100, jitter: 55 }), "1142, in two digits");
    }

    #[test]
    fn a_server_without_workers_has_room_for_requests() {
        let parts = Parts { limit: 100, fixed: 30, workers: 0, private: 0, request: 8, requests: 4 };
        assert_eq!((parts.margin(), parts.most_workers(), parts.most_requests()), (38, None, Some(8)));
    }

    #[test]
    fn what_does_not_fit_has_no_room() {
        let parts = Parts { limit: 100, fixed: 80, workers: 2, private: 30, request: 1, requests: 1 };
        assert_eq!((parts.margin(), parts.most_workers(), parts.most_requests()), (-42, Some(0), Some(0)));
        assert_eq!(parts.max_requests(1.0), None);
        assert_eq!(Parts { request: 0, ..parts }.most_requests(), None);
        assert_eq!(Parts { private: 0, requests: 0, ..parts }.most_workers(), None);
    }

    #[test]
    fn max_requests_are_numbers_to_type() {
        assert_eq!([0, 7, 99, 100, 1049, 98_765].map(two_digits), [0, 7, 99, 100, 1000, 98_000]);
    }

    proptest! {
        #[test]
        fn the_most_fits_and_one_more_does_not(
            limit in 1..1024 * MIB, fixed in 0..512 * MIB, workers in 1u64..64, private in 1..64 * MIB,
            request in 1..16 * MIB, requests in 0u64..32, leaked in 1.0f64..1e7,
        ) {
            let parts = Parts { limit, fixed, workers, private, request, requests };
            let most = parts.most_workers().unwrap();
            prop_assert!(most == 0 || parts.need(most, requests) <= limit);
            prop_assert!(parts.need(most + 1, requests) > limit);
            prop_assert_eq!(most >= workers, parts.margin() >= 0);
            let most = parts.most_requests().unwrap();
            prop_assert!(most == 0 || parts.need(workers, most) <= limit);
            prop_assert!(parts.need(workers, most + 1) > limit);
            if let Some(max) = parts.max_requests(leaked) {
                let leaked = (workers * (max.requests + max.jitter)) as f64 * leaked;
                prop_assert!(leaked <= parts.margin() as f64);
            }
        }
    }
}
