//! Who may come in by which socket, and how far that goes: root, the agent's own user and members of the configured group to
//! everything; by the workloads' socket everybody, to the process tree that it belongs to.
//!
//! The socket file's mode says the same; this also holds where somebody changed the mode, or passed the connection on.

use super::problem::Problem;
use crate::ids::{ProcessId, TICK_NS, Tgid};
use axum::http::StatusCode;
use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
};

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Root and those named here, to all that is known of the node.
    Node {
        /// The agent's own user id.
        own_uid: u32,
        /// The group whose members may read.
        gid: Option<u32>,
    },
    /// Everybody, each to its own process tree: root, too, as that is who most containers run as.
    OwnTree,
}

/// How far somebody's rights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// To everything.
    Node,
    /// To the process tree that it belongs to.
    OwnTree,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// The process that connected; none where the kernel does not tell, or it had gone by then.
    pub(super) process: Option<ProcessId>,
    /// What it may ask for.
    pub(super) scope: Scope,
}

/// Who connected, as the kernel noted at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// The process, in our pid namespace; 0 where it is outside.
    pub(super) pid: u32,
    /// Its effective user id.
    pub(super) uid: u32,
    /// Its effective group id.
    pub(super) gid: u32,
    /// Its supplementary groups.
    pub(super) groups: Vec<u32>,
}

impl Access {
    /// To everything, for the agent's user and a group.
    pub(super) fn to_node(gid: Option<u32>) -> Self {
        Self::Node { own_uid: own_uid(), gid }
    }

    /// How far it goes.
    pub(super) const fn scope(&self) -> Scope {
        match self {
            Self::Node { .. } => Scope::Node,
            Self::OwnTree => Scope::OwnTree,
        }
    }

    /// The mode of a socket's file: whoever may write to it may connect.
    pub(super) const fn mode(&self) -> u32 {
        match self {
            Self::Node { .. } => 0o660,
            Self::OwnTree => 0o666,
        }
    }

    /// The flag that chooses the socket's path, for messages.
    pub(super) const fn flag(&self) -> &'static str {
        match self {
            Self::Node { .. } => "--socket",
            Self::OwnTree => "--workload-socket",
        }
    }

    /// Lets in who is at the other end of a connection, or says why not.
    pub(super) fn admit(&self, socket: &impl AsRawFd) -> Result<Caller, Problem> {
        let peer = Peer::of(socket).map_err(|error| {
            Problem::new(StatusCode::FORBIDDEN, format!("the kernel does not tell who connected: {error}"))
        })?;
        self.judge(&peer, peer.process(socket))
    }

    fn judge(&self, peer: &Peer, process: Option<ProcessId>) -> Result<Caller, Problem> {
        let forbidden = |detail: String| Err(Problem::new(StatusCode::FORBIDDEN, detail));
        let &Peer { pid, uid, .. } = peer;
        match self {
            Self::Node { .. } if !self.allows(peer) => forbidden(format!(
                "user {uid} (pid {pid}) may not read: be root, or join the group that socket_group names"
            )),
            Self::OwnTree if pid == 0 => forbidden(
                "who connected is outside of the agent's pid namespace: run the agent in the node's own".to_owned(),
            ),
            Self::OwnTree if process.is_none() => {
                forbidden(format!("process {pid}, which connected, has ended: connect from one that runs"))
            }
            _ => Ok(Caller { process, scope: self.scope() }),
        }
    }

    fn allows(&self, peer: &Peer) -> bool {
        let in_group = |gid| peer.gid == gid || peer.groups.contains(&gid);
        match *self {
            Self::Node { own_uid, gid } => peer.uid == 0 || peer.uid == own_uid || gid.is_some_and(in_group),
            Self::OwnTree => true,
        }
    }
}

impl Peer {
    /// Asks the kernel who is at the other end of a Unix socket: for a client's socket that is who listens there.
    pub(super) fn of(socket: &impl AsRawFd) -> io::Result<Self> {
        let mut credentials = [libc::ucred { pid: 0, uid: 0, gid: 0 }];
        option(socket, libc::SO_PEERCRED, &mut credentials)?;
        let [libc::ucred { pid, uid, gid }] = credentials;
        Ok(Self { pid: pid.unsigned_abs(), uid, gid, groups: peer_groups(socket)? })
    }

    /// The process that connected, with its start time, which tells it from a later one with the same pid. None where it has
    /// gone, or is outside of our pid namespace.
    fn process(&self, socket: &impl AsRawFd) -> Option<ProcessId> {
        let pid = i32::try_from(self.pid).ok().filter(|&pid| pid != 0)?;
        let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
        let id = ProcessId { tgid: Tgid(self.pid), start_ns: stat.starttime * TICK_NS };
        // Who connected still runs: so what was read before this was its, and not that of a later process with its pid.
        still_runs(socket).then_some(id)
    }
}

/// Whether the process that connected runs. Before Linux 6.5 the kernel cannot tell, and its pid has to do: to be another's it
/// would have to be used again between connect(2) and our accept(2).
fn still_runs(socket: &impl AsRawFd) -> bool {
    let mut handle = [-1];
    match option(socket, libc::SO_PEERPIDFD, &mut handle) {
        Ok(_) => {
            // SAFETY: the kernel made this descriptor for us just now, and nobody else has it.
            let handle = unsafe { OwnedFd::from_raw_fd(handle[0]) };
            let mut wait = libc::pollfd { fd: handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which lives as long as the call, which does not wait.
            unsafe { libc::poll(&raw mut wait, 1, 0) == 0 }
        }
        Err(error) => error.raw_os_error() == Some(libc::ENOPROTOOPT),
    }
}

/// The agent's own user id.
pub(super) fn own_uid() -> u32 {
    // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() }
}

/// The supplementary groups of the peer at the moment it connected.
fn peer_groups(socket: &impl AsRawFd) -> io::Result<Vec<u32>> {
    /// `NGROUPS_MAX`: no process has more.
    const MOST: usize = 65_536;
    let mut groups = vec![0_u32; 64];
    loop {
        match option(socket, libc::SO_PEERGROUPS, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < MOST => {
                groups.resize(MOST, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads a socket option made of `T`s and returns how many there are.
fn option<T: Copy>(socket: &impl AsRawFd, name: libc::c_int, values: &mut [T]) -> io::Result<usize> {
    let mut bytes = size_of_val(values) as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes to `values`, which are that long; every caller's `T` is made of
    // plain integers, valid whatever is written.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, values.as_mut_ptr().cast(), &raw mut bytes)
    };
    if result == 0 { Ok(bytes as usize / size_of::<T>()) } else { Err(io::Error::last_os_error()) }
}

/// The id of a group given by name, or by number. None when there is no such group.
pub(super) fn group_id(group: &str) -> io::Result<Option<u32>> {
    if let Ok(gid) = group.parse() {
        return Ok(Some(gid));
    }
    let name = CString::new(group)?;
    let mut buffer = vec![0; 1 << 16];
    let mut found = std::ptr::null_mut();
    // SAFETY: all-zero bytes are a valid `group`: null pointers and a number.
    let mut entry: libc::group = unsafe { mem::zeroed() };
    // SAFETY: the name ends in a NUL; `entry`, `buffer` (of the length given) and `found` outlive the call.
    let error =
        unsafe { libc::getgrnam_r(name.as_ptr(), &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found) };
    match error {
        // Some name services report an unknown name as an error (getgrnam_r(3)).
        0 | libc::ENOENT | libc::ESRCH => Ok((!found.is_null()).then_some(entry.gr_gid)),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { pid: 1, uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn root_the_own_user_and_members_may_read() {
        let access = Access::Node { own_uid: 500, gid: Some(77) };
        assert!(access.allows(&peer(0, 0, &[])));
        assert!(access.allows(&peer(500, 500, &[])));
        assert!(access.allows(&peer(1000, 77, &[])));
        assert!(access.allows(&peer(1000, 1000, &[5, 77])));
        assert!(!access.allows(&peer(1000, 1000, &[5])));
    }

    #[test]
    fn without_a_group_there_are_no_members() {
        let access = Access::Node { own_uid: 0, gid: None };
        assert!(!access.allows(&peer(1000, 0, &[0])));
    }

    #[test]
    fn to_its_own_tree_comes_everybody_whose_process_is_known_and_nobody_further() {
        let own = Access::OwnTree;
        let process = ProcessId { tgid: Tgid(1), start_ns: 5 };
        for uid in [0, 1000] {
            let caller = own.judge(&peer(uid, uid, &[]), Some(process)).unwrap();
            assert_eq!(caller, Caller { process: Some(process), scope: Scope::OwnTree });
        }
        let refusal = |peer: &Peer| own.judge(peer, None).unwrap_err().json();
        assert!(refusal(&peer(0, 0, &[])).contains("process 1, which connected, has ended"));
        assert!(refusal(&Peer { pid: 0, ..peer(0, 0, &[]) }).contains("outside of the agent's pid namespace"));
        let node = Access::Node { own_uid: 0, gid: None };
        assert_eq!(node.judge(&peer(0, 0, &[]), None), Ok(Caller { process: None, scope: Scope::Node }));
        assert!(
            node.judge(&peer(1000, 0, &[]), Some(process)).unwrap_err().json().contains("user 1000 (pid 1) may not")
        );
    }

    #[test]
    fn the_kernel_tells_which_process_connected_and_whether_it_runs() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let id = Peer::of(&ours).unwrap().process(&ours).unwrap();
        let stat = procfs::process::Process::myself().unwrap().stat().unwrap();
        assert_eq!(id.key().start_tick, stat.starttime);
        assert_eq!(Peer { pid: 0, ..Peer::of(&ours).unwrap() }.process(&ours), None);
    }

    #[test]
    fn the_kernel_tells_who_the_peer_is() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid, std::process::id());
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let groups: Vec<u32> = groups.split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        assert_eq!(peer.groups, groups);
    }

    #[test]
    fn groups_are_found_by_name_and_by_number() {
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(group_id("4711").unwrap(), Some(4711));
        assert_eq!(group_id("no-such-group-here").unwrap(), None);
    }
}
