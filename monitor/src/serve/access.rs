//! Who may read: root, the agent's own user, and members of the configured group.
//!
//! The socket file's mode says the same; this also holds where somebody changed the mode, or passed the connection on.

use std::{ffi::CString, io, mem, os::fd::AsRawFd};

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// The agent's own user id.
    pub(super) own_uid: u32,
    /// The group whose members may read.
    pub(super) gid: Option<u32>,
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
    /// For the agent's user and a group.
    pub(super) fn new(gid: Option<u32>) -> Self {
        // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail.
        Self { own_uid: unsafe { libc::geteuid() }, gid }
    }

    /// Whether a peer may read.
    pub(super) fn allows(&self, peer: &Peer) -> bool {
        let in_group = |gid| peer.gid == gid || peer.groups.contains(&gid);
        peer.uid == 0 || peer.uid == self.own_uid || self.gid.is_some_and(in_group)
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
        let access = Access { own_uid: 500, gid: Some(77) };
        assert!(access.allows(&peer(0, 0, &[])));
        assert!(access.allows(&peer(500, 500, &[])));
        assert!(access.allows(&peer(1000, 77, &[])));
        assert!(access.allows(&peer(1000, 1000, &[5, 77])));
        assert!(!access.allows(&peer(1000, 1000, &[5])));
    }

    #[test]
    fn without_a_group_there_are_no_members() {
        let access = Access { own_uid: 0, gid: None };
        assert!(!access.allows(&peer(1000, 0, &[0])));
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
