//! Source `block_io`: requests to block devices, from submission through issue to completion. Worst case a million
//! requests a second and machine.
//!
//! Counted here by owner, device, operation and latencies; sent: requests that were slow or failed. The owner is taken
//! when the request is submitted, in the context of whoever submits it: the worker that later hands it to the driver, or
//! the interrupt that completes it, says nothing. What costs here are cache lines: between two requests a device was
//! driven, and the caches are cold. So a thread that submits again is known with its account, a request in flight has its
//! place in a table, and so has the account it is charged to: one line each, and no look-up in a hash map but for
//! latencies.
//!
//! A bio merged into a waiting request is counted with it, for the request's owner; a request merged into another one
//! vanishes from the count, as it does from /sys/block/*/stat. A requeued request keeps its submission and gets a new
//! issue time.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

#[path = "block_io/accounts.rs"]
mod accounts;
#[path = "block_io/losses.rs"]
mod losses;
#[path = "block_io/operations.rs"]
mod operations;
#[path = "block_io/requests.rs"]
mod requests;
#[path = "block_io/submitter.rs"]
mod submitter;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, Queue, RingBuf},
    programs::BtfTracePointContext,
};
use losses::{NoRoom, block_io_lose_match, lose_room};
use monitor_common::{
    block_io::{
        Account, Bucket, Completion, Key, Request, SLOW_OR_FAILED, Series, Submission, THREADS_BITS, Thread, latency,
        operation,
    },
    histogram, limits,
};
use monitor_ebpf::{
    counter,
    fields::{self, Kernel},
    lose, ring, tracepoint,
};
use operations::{is_flush, operation};
use submitter::{charged, is_kernel_thread, submitter, thread};

/// Requests in flight, and where those were that are done: see `requests`. Shared memory, like the other tables, because
/// that begins at a page and so lets no entry lie across two cache lines.
#[map]
static REQUESTS: Array<Request> = Array::with_max_entries(limits::BLOCK_IO_REQUESTS, BPF_F_MMAPABLE);
/// Places where some CPU is about to keep a request.
#[map]
static LOCKS: HashMap<u32, u32> = HashMap::with_max_entries(limits::BLOCK_IO_LOCKS, 0);
/// Requests in flight that found no place, by address.
#[map]
static OVERFLOW: HashMap<u64, Request> = HashMap::with_max_entries(limits::BLOCK_IO_OVERFLOW, 0);
/// What each CPU knows of the threads that submit there. The loader sets the number of CPUs.
#[map]
static THREADS: Array<Thread> = Array::with_max_entries(1 << THREADS_BITS, BPF_F_MMAPABLE);
/// How often any thread was moved between cgroups.
#[map]
static MOVES: Array<u64> = Array::with_max_entries(1, 0);
/// Submitters of what is to be durable, by bio, where no program sees the request in its submitter's context: the kernel
/// holds such requests back until the device is flushed, and issues them from elsewhere, or never where they have no data.
#[map]
static DURABLE: HashMap<u64, Submission> = HashMap::with_max_entries(limits::BLOCK_IO_DURABLE, 0);
/// Completed requests, which user space reads where they are.
#[map]
static ACCOUNTS: Array<Account> = Array::with_max_entries(limits::BLOCK_IO_KEYS, BPF_F_MMAPABLE);
/// The accounts that are open, by key.
#[map]
static KEYS: HashMap<Key, Series> = HashMap::with_max_entries(limits::BLOCK_IO_KEYS, 0);
/// Numbers of the others, the longest closed first.
#[map]
static FREE: Queue<u32> = Queue::with_max_entries(limits::BLOCK_IO_KEYS, 0);
/// Their latencies: used buckets only.
#[map]
static LATENCIES: HashMap<Bucket, u64> = HashMap::with_max_entries(limits::BLOCK_IO_BUCKETS, 0);
/// Slow and failed requests.
#[map]
static MOMENTS: RingBuf = RingBuf::with_byte_size(limits::BLOCK_IO_RING_BYTES, 0);
/// From how many nanoseconds on, submission to completion, a request is sent.
#[unsafe(no_mangle)]
static SLOW_NS: Global<u64> = Global::new(50_000_000);
/// Some time after all programs were attached, monotonic nanoseconds: what was submitted before is nobody's loss.
#[unsafe(no_mangle)]
static LOADED_NS: Global<u64> = Global::new(0);

/// 1 where `block_bio_queue` has the bio for its second argument (before Linux 5.11).
#[unsafe(no_mangle)]
static BIO_IS_SECOND: Global<u32> = Global::new(0);
/// The flags of bios and requests that ask for a flush of the device before them, or for their data to be durable.
#[unsafe(no_mangle)]
static DURABLE_FLAGS: Global<u32> = Global::new(0);

/// Unit of `request.__sector`, whatever the device's own.
const SECTOR_BYTES: u64 = 512;
/// `TP_PROTO(struct request *rq)`, since Linux 6.5: a request was made for a bio, in its submitter's context.
#[btf_tracepoint(function = "block_io_start")]
pub fn block_io_submit(ctx: BtfTracePointContext) -> i32 {
    submit(Kernel(ctx.arg(0)))
}

/// `TP_PROTO(struct request *rq)`: a request is handed to the driver.
#[btf_tracepoint(function = "block_rq_issue")]
pub fn block_io_issue(ctx: BtfTracePointContext) -> i32 {
    issue(Kernel(ctx.arg(0)))
}

/// `TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`: some thread's owner
/// has changed.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn block_io_moved(_: BtfTracePointContext) -> i32 {
    if let Some(moves) = MOVES.get_ptr_mut(0) {
        // SAFETY: a value of the map.
        unsafe { counter::add(moves, 1) };
    }
    0
}

tracepoint! {
    /// `TP_PROTO(struct bio *bio)`, before Linux 5.11 `(struct request_queue *q, struct bio *bio)`: a bio is submitted.
    block_io_bio, block_io_bio_raw, "block_bio_queue",
    |ctx| bio(Kernel(if BIO_IS_SECOND.load() != 0 { fields::apart(ctx.arg(1)) } else { fields::apart(ctx.arg(0)) }))
}
tracepoint! {
    /// `TP_PROTO(struct bio *bio, unsigned int new_sector)`, before Linux 5.11 with a `struct request_queue *q` before it: the
    /// front of a bio becomes one of its own, which no other tracepoint shows.
    block_io_split, block_io_split_raw, "block_split",
    |ctx| bio(Kernel(if BIO_IS_SECOND.load() != 0 { fields::apart(ctx.arg(1)) } else { fields::apart(ctx.arg(0)) }))
}
tracepoint! {
    /// `TP_PROTO(struct request_queue *q, struct bio *bio)`: a bio is done, with a request of its own or, on a device that
    /// is made of others, without.
    block_io_bio_done, block_io_bio_done_raw, "block_bio_complete", |ctx| bio_done(Kernel(ctx.arg(1)))
}
tracepoint! {
    /// `TP_PROTO(struct request *rq)`: where there is no `block_io_start`, most requests are first seen here.
    block_io_insert, block_io_insert_raw, "block_rq_insert", |ctx| first_seen(Kernel(ctx.arg(0)))
}
tracepoint! {
    /// As `block_io_issue`, where it may be the first that is seen of a request.
    block_io_first_issue, block_io_first_issue_raw, "block_rq_issue", |ctx| {
        first_seen(Kernel(ctx.arg(0)));
        issue(Kernel(ctx.arg(0)))
    }
}
tracepoint! {
    /// `TP_PROTO(struct request *rq)`: the request goes on as part of another one.
    block_io_merge, block_io_merge_raw, "block_rq_merge", |ctx| merged(Kernel(ctx.arg(0)))
}
tracepoint! {
    /// `TP_PROTO(struct request *rq, blk_status_t error, unsigned int nr_bytes)`: some of a request's bytes, or all that are
    /// left, are done.
    block_io_complete, block_io_complete_raw, "block_rq_complete",
    |ctx| complete(Kernel(ctx.arg(0)), ctx.arg(1), ctx.arg(2))
}

fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Where the program that counts moves is attached as well.
#[inline(always)]
fn submit(request: Kernel) -> i32 {
    // Not the request's own stamp: some kernels renew that only after this tracepoint.
    let submitted_ns = now();
    // SAFETY: the tracepoint's argument is a request; the running task is one.
    unsafe {
        let task = Kernel::current_task();
        let operation = operation(request);
        if fields::BIO_BLKG.load() != fields::ABSENT && is_kernel_thread(task) {
            // Whom it writes for changes from one request to the next.
            let submission = Submission { owner: submitter(request), submitted_ns };
            return submit_for(request, submission, operation, Series::NONE);
        }
        let Some(thread) = thread(task) else { return 0 };
        let owner = (*thread).owner;
        let device = device(request);
        if (*thread).device != device {
            (*thread).device = device;
            (*thread).series = [Series::NONE; operation::COUNT];
        }
        let mut series = Series::NONE;
        if let Some(known) = (*thread).series.get_mut(usize::from(operation)) {
            if *known == Series::NONE {
                // Opened when the first request is done: one that is merged into another's is never counted.
                *known = accounts::find(&Key { owner, device, operation, reserved: 0 });
            }
            series = *known;
        }
        submit_for(request, Submission { owner, submitted_ns }, operation, series)
    }
}

#[inline(always)]
fn submit_for(request: Kernel, submission: Submission, operation: u16, series: Series) -> i32 {
    let Submission { owner, submitted_ns } = submission;
    let entry = Request {
        address: request.0,
        submitted_ns,
        issued_ns: 0,
        cgroup: owner.cgroup,
        start_ns: owner.start_ns,
        tgid: owner.tgid,
        series,
        length: 0,
        bytes: 0,
        // SAFETY: the tracepoint's argument is a request.
        born: unsafe { born(request) },
        status: 0,
        operation,
    };
    if let Some(old) = requests::find(request) {
        // SAFETY: a value of the map; the request belongs to this submitter alone until it is inserted or issued.
        unsafe {
            if (*old).submitted_ns != 0 {
                settle(&*old, device(request));
            }
            // Only what stands in the hash map keeps its mark; a place may have been taken by another request meanwhile.
            let marked = (*old).address & requests::IN_OVERFLOW;
            *old = Request { address: entry.address + marked, ..entry };
        }
    } else if !requests::keep(&entry) {
        lose_room(NoRoom::Request);
    }
    0
}

#[inline(always)]
fn first_seen(request: Kernel) -> i32 {
    // The block layer's own flush is made for requests that are counted themselves.
    if is_flush(request) {
        return 0;
    }
    // SAFETY: the tracepoint's argument is a request; a value of the map.
    if requests::in_flight(request).is_some_and(|entry| unsafe { (*entry).born == born(request) }) {
        return 0;
    }
    let submission = held_back(request)
        // SAFETY: the tracepoint's argument is a request.
        .unwrap_or_else(|| Submission { owner: unsafe { submitter(request) }, submitted_ns: now() });
    // SAFETY: as above.
    submit_for(request, submission, unsafe { operation(request) }, Series::NONE)
}

/// What tells one use of a request from the next: the low half of its own start time, in nanoseconds.
#[inline(always)]
unsafe fn born(request: Kernel) -> u32 {
    // SAFETY: the caller's request.
    unsafe { request.read::<u64>(&fields::REQUEST_START_TIME_NS) as u32 }
}

/// Remembers who submits a bio that may be held back.
#[inline(always)]
fn bio(bio: Kernel) -> i32 {
    // SAFETY: the tracepoint's argument is a bio.
    if unsafe { bio.read::<u32>(&fields::BIO_OPF) } & DURABLE_FLAGS.load() != 0 {
        let submission = Submission { owner: unsafe { charged(bio) }, submitted_ns: now() };
        if DURABLE.insert(bio.0, submission, 0).is_err() {
            lose(|health| &mut health.map_full);
        }
    }
    0
}

/// Forgets a bio that is done. Most have found their request before, and are forgotten already.
#[inline(always)]
fn bio_done(bio: Kernel) -> i32 {
    // SAFETY: the tracepoint's argument is a bio.
    if unsafe { bio.read::<u32>(&fields::BIO_OPF) } & DURABLE_FLAGS.load() != 0 {
        let _ = DURABLE.remove(bio.0);
    }
    0
}

/// Who submitted a request that was held back, and when.
#[inline(always)]
fn held_back(request: Kernel) -> Option<Submission> {
    // SAFETY: the tracepoint's argument is a request; a value of the map.
    unsafe {
        // Not the request's own flags: those are cleared when it is held back.
        let bio = request.follow(&fields::REQUEST_BIO);
        if bio.read::<u32>(&fields::BIO_OPF) & DURABLE_FLAGS.load() == 0 {
            return None;
        }
        let submission = DURABLE.get(bio.0).copied();
        let _ = DURABLE.remove(bio.0);
        submission
    }
}

#[inline(always)]
fn issue(request: Kernel) -> i32 {
    if let Some(entry) = requests::in_flight(request) {
        // SAFETY: a value of the map; the tracepoint's argument is a request.
        unsafe {
            (*entry).issued_ns = now();
            (*entry).length = request.read(&fields::REQUEST_DATA_LEN);
        }
    }
    0
}

#[inline(always)]
fn merged(request: Kernel) -> i32 {
    if let Some(entry) = requests::in_flight(request) {
        // SAFETY: just found.
        unsafe { requests::done(entry) };
    }
    0
}

#[inline(always)]
fn complete(request: Kernel, status: u32, bytes: u32) -> i32 {
    let Some(found) = requests::in_flight(request) else {
        match held_back(request) {
            Some(submission) => flushed(request, status, bytes, submission),
            None => unknown(request, status, bytes),
        }
        return 0;
    };
    // SAFETY: a value of the map, of a request that one CPU completes; the tracepoint's argument is a request.
    unsafe {
        let entry = &mut *found;
        let before = entry.bytes;
        if status == 0 {
            entry.bytes += bytes;
        } else if entry.status == 0 {
            entry.status = status as i16;
        }
        // Drivers may complete in parts; the rest is still in the request.
        if bytes < request.read::<u32>(&fields::REQUEST_DATA_LEN) {
            return 0;
        }
        let done_ns = now();
        // What waited for a flush of the device was never issued itself: its time is the device's.
        let issued = if entry.issued_ns == 0 { entry.submitted_ns } else { entry.issued_ns };
        let queue_ns = issued.saturating_sub(entry.submitted_ns);
        let device_ns = done_ns.saturating_sub(issued);
        account(entry, request, queue_ns, device_ns);
        if queue_ns + device_ns >= SLOW_NS.load() || entry.status != 0 {
            // The request's own sector has moved on with the parts that were completed before.
            let sector = request.read::<u64>(&fields::REQUEST_SECTOR).saturating_sub(u64::from(before) / SECTOR_BYTES);
            send(entry, device(request), sector, queue_ns, device_ns);
        }
        requests::done(found);
    }
    0
}

/// A request that was held back until the device was flushed, and is done without ever being issued: it has no data, or the
/// flush failed.
#[inline(always)]
fn flushed(request: Kernel, status: u32, bytes: u32, submission: Submission) {
    let Submission { owner, submitted_ns } = submission;
    let waited_ns = now().saturating_sub(submitted_ns);
    let entry = Request {
        address: 0,
        submitted_ns,
        issued_ns: 0,
        cgroup: owner.cgroup,
        start_ns: owner.start_ns,
        tgid: owner.tgid,
        series: Series::NONE,
        length: 0,
        bytes: if status == 0 { bytes } else { 0 },
        born: 0,
        status: status as i16,
        // SAFETY: the tracepoint's argument is a request.
        operation: unsafe { operation(request) },
    };
    account(&entry, request, 0, waited_ns);
    if waited_ns >= SLOW_NS.load() || status != 0 {
        // SAFETY: the tracepoint's argument is a request.
        send(&entry, unsafe { device(request) }, 0, 0, waited_ns);
    }
}

/// A request that is used again although its completion was never seen: some kernels run no program while certain tasks
/// are interrupted. It did complete, so it is counted; how long it took, and whether it failed, is lost.
#[inline(always)]
fn settle(entry: &Request, device: u32) {
    block_io_lose_match(u32::from(entry.operation));
    if let Some((_, account)) = account_of(entry, || device) {
        // SAFETY: a value of the map.
        unsafe {
            counter::add(&raw mut (*account).count, 1);
            counter::add(&raw mut (*account).bytes, u64::from(entry.length));
        }
    }
}

/// A completion without a submission: the block layer's own flush, the end of a request whose data was done before the
/// flush that it asked for, a request from before this program, or one that found no room in the map. The last is still
/// counted for the host.
#[inline(always)]
fn unknown(request: Kernel, status: u32, bytes: u32) {
    // SAFETY: the tracepoint's argument is a request; a value of the map.
    unsafe {
        if is_flush(request) || bytes == 0 || request.read::<u64>(&fields::REQUEST_START_TIME_NS) <= LOADED_NS.load() {
            return;
        }
        let Some(account) = accounts::of(Series::of_nobody(operation(request))) else { return };
        if status == 0 {
            counter::add(&raw mut (*account).bytes, u64::from(bytes));
        }
        if bytes >= request.read::<u32>(&fields::REQUEST_DATA_LEN) {
            block_io_lose_match(request.read(&fields::REQUEST_CMD_FLAGS));
            counter::add(&raw mut (*account).count, 1);
            counter::add(&raw mut (*account).errors, u64::from(status != 0));
        }
    }
}

/// The account of a request, which its owner may have to open, or open again: a process that is gone is forgotten.
#[inline(always)]
fn account_of(entry: &Request, device: impl FnOnce() -> u32) -> Option<(Series, *mut Account)> {
    if let Some(account) = accounts::of(entry.series) {
        return Some((entry.series, account));
    }
    let key = Key { owner: entry.owner(), device: device(), operation: entry.operation, reserved: 0 };
    let series = accounts::open(&key);
    if let Some(account) = accounts::of(series) {
        return Some((series, account));
    }
    // It is being closed in this very moment.
    lose_room(NoRoom::Owner);
    let series = Series::of_nobody(entry.operation);
    Some((series, accounts::of(series)?))
}

#[inline(always)]
fn account(entry: &Request, request: Kernel, queue_ns: u64, device_ns: u64) {
    // SAFETY: the caller's request.
    let Some((series, account)) = account_of(entry, || unsafe { device(request) }) else { return };
    let total_ns = queue_ns + device_ns;
    // SAFETY: a value of the map.
    unsafe {
        counter::add(&raw mut (*account).count, 1);
        counter::add(&raw mut (*account).bytes, u64::from(entry.bytes));
        counter::add(&raw mut (*account).wait_ns, total_ns);
        if entry.status != 0 {
            counter::add(&raw mut (*account).errors, 1);
        }
    }
    let series = Bucket::series_of(series);
    let (queue, device, total) =
        (histogram::bucket(queue_ns), histogram::bucket(device_ns), histogram::bucket(total_ns));
    // Few calls, because each is a copy of the program.
    let first = if device != total {
        count_latency(Bucket::new(series, latency::DEVICE, device));
        Bucket::new(series, latency::TOTAL, total)
    } else if queue < latency::ALL_COUNT {
        Bucket::new(series, latency::ALL + queue, total)
    } else {
        Bucket::new(series, latency::DEVICE_AND_TOTAL, total)
    };
    count_latency(first);
    if first.kind() < latency::ALL {
        count_latency(Bucket::new(series, latency::QUEUE, queue));
    }
}

#[inline(always)]
fn count_latency(bucket: Bucket) {
    let count = LATENCIES.get_ptr_mut(bucket).or_else(|| {
        let _ = LATENCIES.insert(bucket, 0, u64::from(BPF_NOEXIST));
        LATENCIES.get_ptr_mut(bucket)
    });
    match count {
        // SAFETY: a value of the map.
        Some(count) => unsafe { counter::add(count, 1) },
        None => lose_room(NoRoom::Latency),
    }
}

#[inline(always)]
fn send(entry: &Request, device: u32, sector: u64, queue_ns: u64, device_ns: u64) {
    ring::send(&MOMENTS, |record: *mut Completion| {
        let completion = Completion {
            header: ring::header(SLOW_OR_FAILED),
            owner: entry.owner(),
            queue_ns,
            device_ns,
            bytes: u64::from(entry.bytes),
            sector,
            device,
            operation: entry.operation,
            reserved: 0,
            status: i32::from(entry.status) as u32,
            reserved2: 0,
        };
        // SAFETY: the ring's reserved bytes.
        unsafe { record.write(completion) };
    });
}

#[inline(always)]
unsafe fn device(request: Kernel) -> u32 {
    // SAFETY: the caller's request, and what its fields point to.
    unsafe {
        let disk = if fields::REQUEST_RQ_DISK.load() != fields::ABSENT {
            request.follow(&fields::REQUEST_RQ_DISK)
        } else {
            request.follow(&fields::REQUEST_Q).follow(&fields::QUEUE_DISK)
        };
        disk.read::<u32>(&fields::DISK_MAJOR) << 20 | disk.read::<u32>(&fields::DISK_FIRST_MINOR)
    }
}
