//! What is counted of one subject: three groups that add up, and their rates.

use super::ledger::Addition;
use crate::raw;
use monitor_common::{
    address_space,
    block_io::{self, Bucket, Key, latency, operation},
    histogram, page_fault, requests, resident,
};
use serde::{Deserialize, Serialize};

/// Counters of one subject since the agent started. They only grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Faults by kind.
    pub page_fault: page_fault::Counts,
    /// mmap and its kin.
    #[serde(with = "raw")]
    pub address_space: address_space::Totals,
    /// Block I/O; none for the many subjects that never did any.
    pub block_io: Option<Box<BlockIo>>,
    /// Turns of requests and answers; none for the many subjects that never had any.
    pub requests: Option<Box<Requests>>,
}

/// Turns of requests and answers of one subject.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// The kernel's counters, but for the peak.
    #[serde(with = "raw")]
    counts: requests::Totals,
    /// The most that are known to have been in flight at once. Of a process (in one cgroup) the kernel sees each; of several
    /// together, it is the most of any of them, or what they came to at the end of a tick.
    pub peak: u64,
    /// Requests that their servers counted themselves.
    pub posted: u64,
}

/// Block I/O of one subject.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    /// By operation, indexed by [`monitor_common::block_io::operation`].
    pub operations: [Operation; 5],
    /// Submission to completion, reads.
    pub read_latency: Histogram,
    /// Submission to completion, writes.
    pub write_latency: Histogram,
    /// Submission to issue, all operations.
    pub queue_latency: Histogram,
    /// Issue to completion, all operations.
    pub device_latency: Histogram,
}

/// One kind of block I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Requests completed, failed ones too.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time from submission to completion, summed, nanoseconds.
    pub wait_ns: u64,
}

/// A sparse histogram over the buckets of [`monitor_common::histogram`], sorted by bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(Vec<(u16, u64)>);

/// Change per second of one subject over the last tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Faults, user and kernel.
    pub page_faults: f64,
    /// Bytes mapped: mmap, mremap growth and heap growth.
    pub mapped_bytes: f64,
    /// Calls of mmap, munmap, mremap and brk.
    pub address_space_calls: f64,
    /// Bytes read from block devices.
    pub read_bytes: f64,
    /// Bytes written to block devices.
    pub write_bytes: f64,
    /// Requests completed.
    pub io_ops: f64,
    /// Seconds that requests spent waiting, from submission to completion, in each second: how many were in flight on
    /// average.
    pub io_wait: f64,
    /// Turns answered.
    pub requests: f64,
    /// Change of what is in memory, in bytes, by kind ([`monitor_common::resident`]); below zero where it became less.
    pub resident: [f64; resident::KINDS],
}

impl Totals {
    /// Adds what is new.
    pub(super) fn apply(&mut self, addition: &Addition) {
        match addition {
            Addition::PageFaults(counts) => {
                for (mine, new) in self.page_fault.iter_mut().zip(counts) {
                    *mine += new;
                }
            }
            Addition::AddressSpace(totals) => add_address_space(&mut self.address_space, totals),
            Addition::BlockIo(key, new) => self.block_io.get_or_insert_default().add(key, new),
            Addition::BlockLatency(key, bucket, count) => {
                self.block_io.get_or_insert_default().add_latency(key, *bucket, *count);
            }
            Addition::Requests(new) => self.requests.get_or_insert_default().add(new),
            Addition::Posted(count) => self.requests.get_or_insert_default().posted += count,
            Addition::Resident(_) => {}
        }
    }

    /// Ends the tick: what is in flight now may be the most so far.
    pub(super) fn settle(&mut self) {
        if let Some(requests) = &mut self.requests {
            requests.peak = requests.peak.max(requests.in_flight());
        }
    }

    /// Whether nothing has been counted.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Faults taken in user mode.
    pub fn user_faults(&self) -> u64 {
        self.page_fault[..page_fault::USER_KINDS].iter().sum()
    }

    /// Faults taken in kernel mode.
    pub fn kernel_faults(&self) -> u64 {
        self.page_fault[page_fault::USER_KINDS..].iter().sum()
    }
}

impl Rates {
    /// Adds what is new, not yet divided by time.
    pub(super) fn apply(&mut self, addition: &Addition) {
        match addition {
            Addition::PageFaults(counts) => self.page_faults += counts.iter().sum::<u64>() as f64,
            Addition::AddressSpace(a) => {
                let mapped = a.mapped_anonymous_bytes + a.mapped_file_bytes + a.mremap_grown_bytes + a.heap_grown_bytes;
                let calls = a.mmap_anonymous_calls + a.mmap_file_calls + a.munmap_calls + a.mremap_calls + a.brk_calls;
                self.mapped_bytes += mapped as f64;
                self.address_space_calls += calls as f64;
            }
            Addition::BlockIo(key, new) => {
                match key.operation {
                    operation::READ => self.read_bytes += new.bytes as f64,
                    operation::WRITE => self.write_bytes += new.bytes as f64,
                    _ => {}
                }
                self.io_ops += new.count as f64;
                self.io_wait += new.wait_ns as f64 / 1e9;
            }
            Addition::BlockLatency(..) | Addition::Posted(_) => {}
            Addition::Requests(new) => self.requests += new.answered as f64,
            Addition::Resident(change) => {
                for (mine, new) in self.resident.iter_mut().zip(change) {
                    *mine += *new as f64;
                }
            }
        }
    }

    /// Sums over a time, per second of it.
    pub(super) fn per_second(self, seconds: f64) -> Self {
        Self {
            page_faults: self.page_faults / seconds,
            mapped_bytes: self.mapped_bytes / seconds,
            address_space_calls: self.address_space_calls / seconds,
            read_bytes: self.read_bytes / seconds,
            write_bytes: self.write_bytes / seconds,
            io_ops: self.io_ops / seconds,
            io_wait: self.io_wait / seconds,
            requests: self.requests / seconds,
            resident: self.resident.map(|bytes| bytes / seconds),
        }
    }
}

fn add_address_space(mine: &mut address_space::Totals, new: &address_space::Totals) {
    mine.mmap_anonymous_calls += new.mmap_anonymous_calls;
    mine.mmap_file_calls += new.mmap_file_calls;
    mine.mapped_anonymous_bytes += new.mapped_anonymous_bytes;
    mine.mapped_file_bytes += new.mapped_file_bytes;
    mine.munmap_calls += new.munmap_calls;
    mine.unmapped_bytes += new.unmapped_bytes;
    mine.mremap_calls += new.mremap_calls;
    mine.mremap_grown_bytes += new.mremap_grown_bytes;
    mine.mremap_shrunk_bytes += new.mremap_shrunk_bytes;
    mine.brk_calls += new.brk_calls;
    mine.heap_grown_bytes += new.heap_grown_bytes;
    mine.heap_shrunk_bytes += new.heap_shrunk_bytes;
    mine.failed_calls += new.failed_calls;
}

impl Requests {
    /// Made up.
    #[cfg(test)]
    pub(crate) fn of(counts: requests::Totals) -> Self {
        Self { counts, peak: counts.peak, posted: 0 }
    }

    fn add(&mut self, new: &requests::Totals) {
        let mine = &mut self.counts;
        mine.answered += new.answered;
        mine.begun += new.begun;
        mine.unanswered += new.unanswered;
        mine.connections += new.connections;
        mine.received_bytes += new.received_bytes;
        mine.sent_bytes += new.sent_bytes;
        self.peak = self.peak.max(new.peak);
    }

    /// The counters.
    pub const fn counts(&self) -> &requests::Totals {
        &self.counts
    }

    /// Requests served: as their servers count them, where one does; else turns that were answered.
    pub const fn served(&self) -> u64 {
        if self.posted > 0 { self.posted } else { self.counts.answered }
    }

    /// Turns in flight.
    pub const fn in_flight(&self) -> u64 {
        self.counts.in_flight()
    }
}

impl BlockIo {
    fn add(&mut self, key: &Key, new: &block_io::Totals) {
        let operation = usize::from(key.operation).min(self.operations.len() - 1);
        let mine = &mut self.operations[operation];
        mine.count += new.count;
        mine.bytes += new.bytes;
        mine.errors += new.errors;
        mine.wait_ns += new.wait_ns;
    }

    fn add_latency(&mut self, key: &Key, bucket: Bucket, count: u64) {
        let value = bucket.bucket();
        match bucket.kind() {
            latency::QUEUE => self.queue_latency.add(value, count),
            latency::DEVICE => self.device_latency.add(value, count),
            latency::TOTAL => self.add_total_latency(key, value, count),
            kind => {
                if kind >= latency::ALL {
                    self.queue_latency.add(kind - latency::ALL, count);
                }
                self.device_latency.add(value, count);
                self.add_total_latency(key, value, count);
            }
        }
    }

    fn add_total_latency(&mut self, key: &Key, value: u16, count: u64) {
        match key.operation {
            operation::READ => self.read_latency.add(value, count),
            operation::WRITE => self.write_latency.add(value, count),
            _ => {}
        }
    }

    /// Requests of all operations.
    pub fn count(&self) -> u64 {
        self.operations.iter().map(|o| o.count).sum()
    }

    /// Time that requests of all operations waited, submission to completion, in nanoseconds.
    pub fn wait_ns(&self) -> u64 {
        self.operations.iter().map(|o| o.wait_ns).sum()
    }

    /// Failed requests of all operations.
    pub fn errors(&self) -> u64 {
        self.operations.iter().map(|o| o.errors).sum()
    }
}

impl Histogram {
    /// Counts `count` values in a bucket.
    pub fn add(&mut self, bucket: u16, count: u64) {
        match self.0.binary_search_by_key(&bucket, |&(b, _)| b) {
            Ok(i) => self.0[i].1 += count,
            Err(i) => self.0.insert(i, (bucket, count)),
        }
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|&(_, count)| count).sum()
    }

    /// The value below which a share of `quantile` (0–1) of all values lies, in nanoseconds: the midpoint of its bucket,
    /// so within 3.2 % (or 512 ns). None when empty.
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        let rank = (quantile * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.0.iter().find_map(|&(bucket, count)| {
            seen += count;
            (seen >= rank).then(|| histogram::lower_bound_ns(bucket).midpoint(histogram::upper_bound_ns(bucket)))
        })
    }

    /// The upper bound of the highest bucket used, in nanoseconds: at most 6.3 % above the largest value. None when empty.
    pub fn max_ns(&self) -> Option<u64> {
        self.0.last().map(|&(bucket, _)| histogram::upper_bound_ns(bucket))
    }
}
