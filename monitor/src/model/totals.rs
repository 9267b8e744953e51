//! What is counted of one subject: three groups that add up, and their rates.

use monitor_common::{address_space, histogram, page_fault};

/// Counters of one subject since the agent started. They only grow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Faults by kind.
    pub page_fault: page_fault::Counts,
    /// mmap and its kin.
    pub address_space: address_space::Totals,
    /// Block I/O; none for the many subjects that never did any.
    pub block_io: Option<Box<BlockIo>>,
}

/// Block I/O of one subject.
#[derive(Clone, Debug, Default, PartialEq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Requests completed, failed ones too.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time in the queue, summed, nanoseconds.
    pub queue_ns: u64,
    /// Time on the device, summed, nanoseconds.
    pub device_ns: u64,
}

/// A sparse histogram over the buckets of [`monitor_common::histogram`], sorted by bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(Vec<(u16, u64)>);

/// Change per second of one subject over the last tick.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
}

impl Totals {
    /// Adds another subject's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.page_fault.iter_mut().zip(other.page_fault) {
            *mine += theirs;
        }
        add_address_space(&mut self.address_space, &other.address_space);
        if let Some(theirs) = &other.block_io {
            self.block_io.get_or_insert_default().add(theirs);
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

    /// The change from `before` to now, per second.
    pub fn rates(&self, before: &Self, seconds: f64) -> Rates {
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let a = (&self.address_space, &before.address_space);
        let empty = BlockIo::default();
        let io = (self.block_io.as_deref().unwrap_or(&empty), before.block_io.as_deref().unwrap_or(&empty));
        let op = |o: u16| (io.0.operations[usize::from(o)], io.1.operations[usize::from(o)]);
        let (read, write) =
            (op(monitor_common::block_io::operation::READ), op(monitor_common::block_io::operation::WRITE));
        Rates {
            page_faults: per_second(
                self.user_faults() + self.kernel_faults(),
                before.user_faults() + before.kernel_faults(),
            ),
            mapped_bytes: per_second(mapped(a.0), mapped(a.1)),
            address_space_calls: per_second(calls(a.0), calls(a.1)),
            read_bytes: per_second(read.0.bytes, read.1.bytes),
            write_bytes: per_second(write.0.bytes, write.1.bytes),
            io_ops: per_second(io.0.count(), io.1.count()),
            io_wait: per_second(io.0.wait_ns(), io.1.wait_ns()) / 1e9,
        }
    }
}

impl Rates {
    /// Adds another subject's.
    pub fn add(&mut self, other: &Self) {
        self.page_faults += other.page_faults;
        self.mapped_bytes += other.mapped_bytes;
        self.address_space_calls += other.address_space_calls;
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.io_ops += other.io_ops;
        self.io_wait += other.io_wait;
    }
}

fn mapped(a: &address_space::Totals) -> u64 {
    a.mapped_anonymous_bytes + a.mapped_file_bytes + a.mremap_grown_bytes + a.heap_grown_bytes
}

fn calls(a: &address_space::Totals) -> u64 {
    a.mmap_anonymous_calls + a.mmap_file_calls + a.munmap_calls + a.mremap_calls + a.brk_calls
}

fn add_address_space(mine: &mut address_space::Totals, theirs: &address_space::Totals) {
    mine.mmap_anonymous_calls += theirs.mmap_anonymous_calls;
    mine.mmap_file_calls += theirs.mmap_file_calls;
    mine.mapped_anonymous_bytes += theirs.mapped_anonymous_bytes;
    mine.mapped_file_bytes += theirs.mapped_file_bytes;
    mine.munmap_calls += theirs.munmap_calls;
    mine.unmapped_bytes += theirs.unmapped_bytes;
    mine.mremap_calls += theirs.mremap_calls;
    mine.mremap_grown_bytes += theirs.mremap_grown_bytes;
    mine.mremap_shrunk_bytes += theirs.mremap_shrunk_bytes;
    mine.brk_calls += theirs.brk_calls;
    mine.heap_grown_bytes += theirs.heap_grown_bytes;
    mine.heap_shrunk_bytes += theirs.heap_shrunk_bytes;
    mine.failed_calls += theirs.failed_calls;
}

impl BlockIo {
    /// Adds another subject's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.operations.iter_mut().zip(&other.operations) {
            mine.count += theirs.count;
            mine.bytes += theirs.bytes;
            mine.errors += theirs.errors;
            mine.queue_ns += theirs.queue_ns;
            mine.device_ns += theirs.device_ns;
        }
        self.read_latency.merge(&other.read_latency);
        self.write_latency.merge(&other.write_latency);
        self.queue_latency.merge(&other.queue_latency);
        self.device_latency.merge(&other.device_latency);
    }

    /// Requests of all operations.
    pub fn count(&self) -> u64 {
        self.operations.iter().map(|o| o.count).sum()
    }

    /// Time that requests of all operations waited, submission to completion, in nanoseconds.
    pub fn wait_ns(&self) -> u64 {
        self.operations.iter().map(|o| o.queue_ns + o.device_ns).sum()
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

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        for &(bucket, count) in &other.0 {
            self.add(bucket, count);
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
            (seen >= rank)
                .then(|| histogram::lower_bound_ns(bucket).midpoint(histogram::upper_bound_ns(bucket)))
        })
    }

    /// The upper bound of the highest bucket used, in nanoseconds: at most 6.3 % above the largest value. None when empty.
    pub fn max_ns(&self) -> Option<u64> {
        self.0.last().map(|&(bucket, _)| histogram::upper_bound_ns(bucket))
    }
}
