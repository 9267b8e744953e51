//! Source `requests`: turns from receive to send on accepted TCP and Unix stream sockets. Worst case some 500,000 receives and
//! as many sends a second and CPU.
//!
//! Nothing is sent; everything is counted here, by owner. What is known of a socket is kept with the socket itself (socket
//! storage), so that it ends when the socket does, and a socket that reuses the address knows nothing of it.
//!
//! That a TCP socket was accepted is told by its state: SYN_RECV becomes ESTABLISHED. Others are mostly told by their port, on
//! which none was ever accepted. Unix sockets have no such moment. One that
//! was accepted shares the address of the socket it was accepted from; who connects has no address, or one of its own. The
//! server's end is looked at when it first transfers something, while the one it came from listens.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the program macros wrap each function in a public one")]

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE},
    btf_maps::SkStorage,
    cty::c_void,
    helpers::generated::{bpf_sk_storage_get, bpf_skc_to_unix_sock},
    macros::{btf_map, btf_tracepoint, map},
    maps::{Array, HashMap, Queue},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use monitor_common::{
    Owner, limits,
    requests::{Account, Socket, Totals, phase},
};
use monitor_ebpf::{
    counter,
    fields::{self, Kernel},
    lose, owner,
};

/// Counters of every owner. User space maps them into its memory.
#[map]
static ACCOUNTS: Array<Account> = Array::with_max_entries(limits::REQUESTS_OWNERS, BPF_F_MMAPABLE);
/// The open accounts, by whose they are.
#[map]
static KEYS: HashMap<Owner, u32> = HashMap::with_max_entries(limits::REQUESTS_OWNERS, 0);
/// Those that can be opened.
#[map]
static FREE: Queue<u32> = Queue::with_max_entries(limits::REQUESTS_OWNERS, 0);
/// Whether a TCP socket was accepted on any of eight ports.
#[map]
static PORTS: Array<[u8; PORTS_BYTES]> = Array::with_max_entries(1, 0);
/// Accepted sockets.
#[btf_map]
static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// States of TCP sockets (include/net/tcp_states.h).
mod state {
    pub(super) const ESTABLISHED: i32 = 1;
    pub(super) const SYN_RECV: i32 = 3;
    pub(super) const CLOSE_WAIT: i32 = 8;
}

/// A place for every eight ports.
const PORTS_BYTES: usize = 65_536 / 8;
const AF_UNIX: u16 = 1;
const SOCK_STREAM: u16 = 1;
const MSG_PEEK: i32 = 2;
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

/// `TP_PROTO(const struct sock *sk, const int oldstate, const int newstate)`; often in a softirq, so the running task means
/// nothing.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn requests_state(ctx: BtfTracePointContext) -> i32 {
    let (before, now): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if before == state::SYN_RECV && now == state::ESTABLISHED {
        // SAFETY: the tracepoint's socket, and the map's value, which only ever becomes 1.
        unsafe {
            if let Some(seen) = port_of(Kernel(ctx.arg(0))) {
                *seen = 1;
            }
        }
        accepted(&ctx, ctx.arg(0));
    } else if matches!(before, state::ESTABLISHED | state::CLOSE_WAIT) && now != state::CLOSE_WAIT {
        // Nothing can be sent any more.
        if let Some(socket) = find(ctx.arg(0)) {
            // SAFETY: the socket's own value.
            unsafe { give_up(socket, phase::CLOSED) };
        }
    }
    0
}

/// `TP_PROTO(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_recv_length")]
pub fn requests_received(ctx: BtfTracePointContext) -> i32 {
    let (bytes, flags): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    // What is only looked at will be received.
    if bytes < 0 || flags & MSG_PEEK != 0 {
        return 0;
    }
    let Some(socket) = find_or_see(&ctx) else { return 0 };
    // SAFETY: the socket's own value, and one of the map.
    unsafe {
        if bytes == 0 {
            give_up(socket, phase::CLOSED);
            return 0;
        }
        let Some(totals) = totals(&ctx, socket) else { return 0 };
        counter::add(&raw mut (*totals).received_bytes, bytes as u64);
        if (*socket).phase != phase::RECEIVED {
            (*socket).phase = phase::RECEIVED;
            counter::add(&raw mut (*totals).begun, 1);
            raise_peak(totals);
        }
    }
    0
}

/// `TP_PROTO(struct sock *sk, int ret, int flags)`
#[btf_tracepoint(function = "sock_send_length")]
pub fn requests_sent(ctx: BtfTracePointContext) -> i32 {
    let bytes: i32 = ctx.arg(1);
    if bytes <= 0 {
        if bytes == -EPIPE || bytes == -ECONNRESET {
            if let Some(socket) = find(ctx.arg(0)) {
                // SAFETY: the socket's own value.
                unsafe { give_up(socket, phase::CLOSED) };
            }
        }
        return 0;
    }
    let Some(socket) = find_or_see(&ctx) else { return 0 };
    // SAFETY: the socket's own value, and one of the map.
    unsafe {
        let Some(totals) = totals(&ctx, socket) else { return 0 };
        counter::add(&raw mut (*totals).sent_bytes, bytes as u64);
        if (*socket).phase != phase::IDLE {
            if (*socket).phase == phase::CLOSED {
                // Nobody was thought to answer it, or another process had received it.
                counter::add(&raw mut (*totals).begun, 1);
            }
            (*socket).phase = phase::IDLE;
            counter::add(&raw mut (*totals).answered, 1);
        }
    }
    0
}

/// The value of a tracepoint's socket, where it was accepted.
#[inline(always)]
fn find(socket: *const c_void) -> Option<*mut Socket> {
    storage(socket, core::ptr::null_mut(), 0)
}

/// The value of the tracepoint's socket that transfers something, where it was accepted.
#[inline(always)]
fn find_or_see(ctx: &BtfTracePointContext) -> Option<*mut Socket> {
    let socket = Kernel(ctx.arg(0));
    // SAFETY: the tracepoint's socket, and the map's value.
    unsafe {
        if socket.typed_read::<u16>(&fields::SOCK_FAMILY) == AF_UNIX {
            let known = fields::SOCK_BPF_STORAGE.load() == fields::ABSENT
                || socket.typed_read::<u64>(&fields::SOCK_BPF_STORAGE) != 0;
            return if known { find(ctx.arg(0)).or_else(|| first_seen(ctx)) } else { first_seen(ctx) };
        }
        // Whether a socket has storage is told in a cache line that nobody else needs; its port in one that was just used.
        if *port_of(socket)? == 0 {
            return None;
        }
    }
    find(ctx.arg(0))
}

/// Whether sockets of a TCP socket's port were accepted.
///
/// # Safety
/// It must be a socket.
#[inline(always)]
unsafe fn port_of(socket: Kernel) -> Option<*mut u8> {
    // SAFETY: the caller's promise.
    let port = unsafe { socket.typed_read::<u16>(&fields::SOCK_NUM) };
    // SAFETY: the index is below the value's length.
    Some(unsafe { PORTS.get_ptr_mut(0)?.cast::<u8>().add(usize::from(port >> 3)) })
}

/// Makes a socket's value: it was accepted.
#[inline(always)]
fn accepted(ctx: &impl EbpfContext, socket: *const c_void) -> Option<*mut Socket> {
    let value = storage(socket, core::ptr::null_mut(), u64::from(BPF_SK_STORAGE_GET_F_CREATE));
    if value.is_none() && lose(|health| &mut health.map_full) {
        warn!(ctx, "requests: no memory for what is known of another socket");
    }
    value
}

#[inline(always)]
fn storage(socket: *const c_void, value: *mut c_void, flags: u64) -> Option<*mut Socket> {
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: a tracepoint's socket; the helper checks the rest. A new value is all zeroes.
    let value = unsafe { bpf_sk_storage_get(map, socket.cast_mut(), value, flags) };
    (!value.is_null()).then_some(value.cast())
}

/// A socket that nothing is known of transfers something: remembers it where it is a Unix socket that was accepted.
#[inline(always)]
fn first_seen(ctx: &BtfTracePointContext) -> Option<*mut Socket> {
    let socket = Kernel(ctx.arg(0));
    // SAFETY: the tracepoint's socket, and what its fields point to.
    unsafe {
        if fields::UNIX_SOCK_ADDR.load() == fields::ABSENT
            || socket.typed_read::<u16>(&fields::SOCK_TYPE) != SOCK_STREAM
        {
            return None;
        }
        let unix = Kernel(bpf_skc_to_unix_sock(ctx.arg(0)) as u64);
        if unix.0 == 0 {
            return None;
        }
        let address = Kernel(unix.typed_read(&fields::UNIX_SOCK_ADDR));
        if address.0 == 0 || address.typed_read::<u32>(&fields::UNIX_ADDRESS_REFCNT) < 2 {
            return None;
        }
    }
    accepted(ctx, ctx.arg(0))
}

/// The counters of who is running, for what it transfers on a socket.
///
/// # Safety
/// `socket` must be a value of the map.
#[inline(always)]
unsafe fn totals(ctx: &BtfTracePointContext, socket: *mut Socket) -> Option<*mut Totals> {
    // SAFETY: the running task; the caller's value, and one of the other map.
    unsafe {
        let task = Kernel::typed_current_task();
        let cgroups = task.typed_read::<u64>(&fields::TASK_CGROUPS);
        let tgid = task.typed_read::<u32>(&fields::TASK_TGID);
        let account = ACCOUNTS.get_ptr_mut((*socket).account)?;
        // An account outlives its process for as long as no pid is used again.
        if (*socket).cgroups == cgroups && (*socket).tgid == tgid && (*socket).usage == (*account).usage {
            return Some(&raw mut (*account).totals);
        }
        change_account(ctx, socket)?;
        (*socket).cgroups = cgroups;
        (*socket).tgid = tgid;
        Some(&raw mut (*ACCOUNTS.get_ptr_mut((*socket).account)?).totals)
    }
}

/// Somebody else transfers something on a socket, or the same process from another cgroup, or it is the first time.
///
/// # Safety
/// `socket` must be a value of the map.
#[cold]
#[inline(never)]
unsafe fn change_account(ctx: &BtfTracePointContext, socket: *mut Socket) -> Option<()> {
    let owner = owner::current();
    let number = find_account(&owner).or_else(|| open_account(&owner)).unwrap_or_else(|| {
        if lose(|health| &mut health.map_full) {
            warn!(ctx, "requests: no room for another owner, counting for nobody");
        }
        NOBODYS
    });
    let account = ACCOUNTS.get_ptr_mut(number)?;
    // SAFETY: values of the maps.
    unsafe {
        let usage = (*account).usage;
        if (*socket).phase == phase::NEW {
            (*socket).phase = phase::IDLE;
            counter::add(&raw mut (*account).totals.connections, 1);
        } else if (*socket).account != number || (*socket).usage != usage {
            give_up(socket, phase::CLOSED);
        }
        (*socket).account = number;
        (*socket).usage = usage;
    }
    Some(())
}

/// The account for what cannot be attributed.
const NOBODYS: u32 = 0;

#[inline(always)]
fn find_account(owner: &Owner) -> Option<u32> {
    // SAFETY: a value of the map.
    KEYS.get_ptr(owner).map(|number| unsafe { *number })
}

#[inline(always)]
fn open_account(owner: &Owner) -> Option<u32> {
    let number = FREE.pop().ok()??;
    let account = ACCOUNTS.get_ptr_mut(number)?;
    // SAFETY: a value of the map, which is nobody else's until it is found by its key.
    unsafe { (*account).owner = *owner };
    if KEYS.insert(owner, number, u64::from(BPF_NOEXIST)).is_ok() {
        return Some(number);
    }
    // Another CPU was first.
    let _ = FREE.push(number, 0);
    find_account(owner)
}

/// Ends a turn that is in flight, without an answer.
///
/// # Safety
/// `socket` must be a value of the map.
#[cold]
#[inline(never)]
unsafe fn give_up(socket: *mut Socket, next: u32) {
    // SAFETY: the caller's promise, and a value of the other map.
    unsafe {
        if (*socket).phase == phase::RECEIVED {
            (*socket).phase = next;
            if let Some(account) = ACCOUNTS.get_ptr_mut((*socket).account) {
                // Else the process has exited, and its counts were harvested.
                if (*account).usage == (*socket).usage {
                    counter::add(&raw mut (*account).totals.unanswered, 1);
                }
            }
        }
    }
}

/// Notes how many are in flight, where that is a record. What began is read first: so it is never more than there were.
///
/// # Safety
/// `totals` must be in a value of the map.
#[inline(always)]
unsafe fn raise_peak(totals: *mut Totals) {
    // SAFETY: the caller's promise.
    unsafe {
        let begun = (&raw const (*totals).begun).read_volatile();
        let answered = (&raw const (*totals).answered).read_volatile();
        let in_flight = begun.wrapping_sub(answered).wrapping_sub((*totals).unanswered) as i64;
        if in_flight > (*totals).peak as i64 {
            (*totals).peak = in_flight as u64;
        }
    }
}
