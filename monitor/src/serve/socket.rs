//! A socket file: claimed before anything is attached, there only once there is something to answer, gone at the end.
//!
//! A lock file beside it decides between two agents that start at once; the kernel drops the lock with the agent,
//! however that ends. The agent's own socket and that of the workloads differ in who may come in ([`Access`]), and in nothing
//! else but this: where everybody is let in, nobody else may be able to put another socket in its place.

use super::access::{Access, Peer, group_id, own_uid};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// The longest path an address holds, without the NUL at its end (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// Why a path cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody answers there.
    #[error("{} is served by {owner}: stop it, or choose another path with {flag}", path.display())]
    Owned {
        /// The socket.
        path: PathBuf,
        /// The process that listens.
        owner: String,
        /// What chooses another path.
        flag: &'static str,
    },
    /// Something else stands there.
    #[error("{} exists and is not a socket: remove it, or choose another path with {flag}", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What chooses another one.
        flag: &'static str,
    },
    /// The path does not fit an address.
    #[error("{} is longer than the {PATH_BYTES_MAX} bytes a socket's path may have: choose a shorter one with {flag}", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// What chooses another one.
        flag: &'static str,
    },
    /// A socket for everybody in a directory where that is of no use, or not safe.
    #[error("others {fault} {}, where the socket for workloads is to be: make it root's with mode 0755, or choose another path with --workload-socket", path.display())]
    Directory {
        /// What of others is wrong, to be followed by the directory.
        fault: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// Nobody knows the group.
    #[error("there is no group \"{group}\": create it, or change socket_group")]
    UnknownGroup {
        /// Its name.
        group: String,
    },
    /// The group is not one of the agent's, and it may not give files to others.
    #[error("cannot give {} to the group {gid}: grant CAP_CHOWN, or have the agent be a member of it", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// The group.
        gid: u32,
        /// Why it failed.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: run as root, or choose another path with {flag}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What chooses another path.
        flag: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A path that is ours, with no socket there yet. Dropping it gives the path up.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    temporary: PathBuf,
    access: Access,
    lock: Lock,
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: tokio::net::UnixListener,
    pub(super) access: Access,
    path: PathBuf,
    /// Device and inode of the socket's file, to remove no other.
    file: (u64, u64),
    /// Dropped after the socket's file is gone.
    _lock: Lock,
}

/// Makes a path ours for the agent's own socket, to be shared with a group, so that nobody else listens there, and checks that
/// a socket can be made there.
pub fn claim(path: &Path, group: Option<&str>) -> Result<Claim, ClaimError> {
    let gid = group.map(|group| known_group(group, path)).transpose()?;
    claim_for(path, Access::to_node(gid))
}

/// As [`claim`], for the socket where everybody asks about its own process tree.
pub fn claim_for_workloads(path: &Path) -> Result<Claim, ClaimError> {
    claim_for(path, Access::OwnTree)
}

fn claim_for(path: &Path, access: Access) -> Result<Claim, ClaimError> {
    let flag = access.flag();
    let temporary = path.with_file_name(format!(".{}", std::process::id()));
    if [path, &temporary].iter().any(|path| path.as_os_str().len() > PATH_BYTES_MAX) {
        return Err(ClaimError::TooLong { path: path.to_owned(), flag });
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(directory).map_err(file_error("create the directory", directory, flag))?;
    if access == Access::OwnTree {
        let file = fs::metadata(directory).map_err(file_error("look at", directory, flag))?;
        if let Some(fault) = fault_for_all((file.uid(), file.mode()), own_uid()) {
            return Err(ClaimError::Directory { fault, path: directory.to_owned() });
        }
    }
    let lock = Lock::take(path, flag)?;
    refuse_occupied(path, flag)?;
    Ok(Claim { path: path.to_owned(), temporary, access, lock })
}

impl Claim {
    /// Where the socket will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the socket, which appears at its path with its final rights, and replaces a stale one. To be called within
    /// a tokio runtime.
    pub fn listen(self) -> Result<Listener, ClaimError> {
        let Self { path, temporary, access, lock } = self;
        let flag = access.flag();
        refuse_occupied(&path, flag)?;
        remove_if_there(&temporary).map_err(file_error("remove", &temporary, flag))?;
        let socket = UnixListener::bind(&temporary).map_err(file_error("create a socket at", &temporary, flag))?;
        let placed = place(&temporary, &path, access);
        if placed.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        let file = placed?;
        let socket = socket.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(socket));
        let socket = socket.map_err(file_error("listen at", &path, flag))?;
        Ok(Listener { socket, access, path, file, _lock: lock })
    }
}

impl Listener {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Gives the new socket its rights, then its name; returns its device and inode.
fn place(temporary: &Path, path: &Path, access: Access) -> Result<(u64, u64), ClaimError> {
    if let Access::Node { gid: Some(gid), .. } = access {
        let given = std::os::unix::fs::chown(temporary, None, Some(gid));
        given.map_err(|source| ClaimError::Group { path: path.to_owned(), gid, source })?;
    }
    let placed = fs::set_permissions(temporary, Permissions::from_mode(access.mode())).and_then(|()| {
        let file = fs::symlink_metadata(temporary)?;
        fs::rename(temporary, path)?;
        Ok((file.dev(), file.ino()))
    });
    placed.map_err(file_error("create the socket", path, access.flag()))
}

/// Makes a directory, and those above it, for everybody to enter whatever the umask.
fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(above) = directory.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_directory(above)?;
    }
    match DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755)),
        // Somebody was quicker; with what rights is theirs to know.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is wrong with a directory, by its owner and mode, for a socket that everybody is to trust.
fn fault_for_all((uid, mode): (u32, u32), own_uid: u32) -> Option<&'static str> {
    let is_sticky = mode & 0o1000 != 0;
    match () {
        () if uid != 0 && uid != own_uid => Some("own"),
        () if mode & 0o022 != 0 && !is_sticky => Some("may put files of theirs into"),
        () if mode & 0o001 == 0 => Some("may not enter"),
        () => None,
    }
}

/// An exclusive lock on the file beside the socket that names the owner. Dropping it removes the file.
#[derive(Debug)]
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    fn take(socket: &Path, flag: &'static str) -> Result<Self, ClaimError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            let mut lock = Self { file: file.map_err(file_error("create", &path, flag))?, path: path.clone() };
            match lock.file.try_lock() {
                Ok(()) if lock.is_in_place() => {
                    lock.sign().map_err(file_error("write", &path, flag))?;
                    return Ok(lock);
                }
                // Its last owner removed it between our opening and our locking it.
                Ok(()) => lock.disown(),
                Err(TryLockError::WouldBlock) => {
                    let owner = lock.owner();
                    lock.disown();
                    return Err(ClaimError::Owned { path: socket.to_owned(), owner, flag });
                }
                Err(TryLockError::Error(error)) => {
                    lock.disown();
                    return Err(file_error("lock", &path, flag)(error));
                }
            }
        }
    }

    /// Whether the file locked is the one that has the name.
    fn is_in_place(&self) -> bool {
        let (Ok(ours), Ok(named)) = (self.file.metadata(), fs::symlink_metadata(&self.path)) else { return false };
        (ours.dev(), ours.ino()) == (named.dev(), named.ino())
    }

    /// Leaves our pid for whoever comes second.
    fn sign(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }

    fn owner(&mut self) -> String {
        let mut pid = String::new();
        let _ = self.file.read_to_string(&mut pid);
        pid.trim().parse().map_or_else(|_| "another agent".to_owned(), process)
    }

    /// Drops it without removing the file, which is not ours.
    fn disown(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still locked: see `is_in_place`.
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Refuses a path where somebody listens, or where something else stands than a socket.
fn refuse_occupied(path: &Path, flag: &'static str) -> Result<(), ClaimError> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(ClaimError::NotASocket { path: path.to_owned(), flag }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_error("look at", path, flag)(error)),
    }
    match UnixStream::connect(path) {
        Ok(socket) => Err(ClaimError::Owned { path: path.to_owned(), owner: owner(&socket), flag }),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(file_error("connect to the socket found at", path, flag)(error)),
    }
}

/// Who listens at the other end.
fn owner(socket: &UnixStream) -> String {
    Peer::of(socket).map_or_else(|_| "another process".to_owned(), |peer| process(peer.pid))
}

/// A process, for a message: "pid 17 (monitor)".
fn process(pid: u32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("pid {pid} ({})", command.trim().escape_debug())
}

fn known_group(group: &str, path: &Path) -> Result<u32, ClaimError> {
    let gid = group_id(group).map_err(file_error("look up the group for", path, "--socket"))?;
    gid.ok_or_else(|| ClaimError::UnknownGroup { group: group.to_owned() })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn file_error(action: &'static str, path: &Path, flag: &'static str) -> impl FnOnce(io::Error) -> ClaimError {
    let path = path.to_owned();
    move |source| ClaimError::File { action, path, flag, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn it_appears_with_its_rights_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/for/it/monitor.sock");
        let claimed = claim(&path, Some("0")).unwrap();
        assert!(!path.exists(), "no socket before there is something to answer");
        let runtime = runtime();
        let _guard = runtime.enter();
        let listener = claimed.listen().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
        drop(listener);
        assert_eq!(files(path.parent().unwrap()), 0);
    }

    /// A directory that everybody may enter.
    fn open_directory() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap()
    }

    #[test]
    fn the_workloads_socket_is_for_everybody() {
        let directory = open_directory();
        let path = directory.path().join("made/for/it/monitor.sock");
        let runtime = runtime();
        let _guard = runtime.enter();
        let listener = claim_for_workloads(&path).unwrap().listen().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o666);
        for above in path.ancestors().skip(1).take(3) {
            assert_eq!(fs::metadata(above).unwrap().mode() & 0o7777, 0o755, "{}", above.display());
        }
        drop(listener);
        assert_eq!(files(path.parent().unwrap()), 0);
    }

    #[test]
    fn a_directory_where_others_could_replace_the_socket_or_not_reach_it_is_refused() {
        let fault = |uid: u32, mode: u32| fault_for_all((uid, 0o40000 | mode), 500);
        assert_eq!([fault(0, 0o755), fault(500, 0o711), fault(0, 0o1777)], [None; 3]);
        assert_eq!(fault(1000, 0o755), Some("own"));
        assert_eq!([fault(0, 0o777), fault(0, 0o775)], [Some("may put files of theirs into"); 2]);
        assert_eq!(fault(0, 0o700), Some("may not enter"));
        let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
        let error = claim_for_workloads(&directory.path().join("m.sock")).unwrap_err().to_string();
        assert!(error.starts_with(&format!("others may not enter {}, where", directory.path().display())), "{error}");
        assert_eq!(files(directory.path()), 0);
    }

    #[test]
    fn refusals_name_the_flag_of_their_socket() {
        let directory = open_directory();
        let path = directory.path().join("m.sock");
        fs::write(&path, "precious").unwrap();
        assert!(claim(&path, None).unwrap_err().to_string().ends_with("another path with --socket"));
        assert!(claim_for_workloads(&path).unwrap_err().to_string().ends_with("another path with --workload-socket"));
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let runtime = runtime();
        let _guard = runtime.enter();
        let listener = claim(&path, None).unwrap().listen().unwrap();
        assert_eq!(listener.path(), path);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_socket_names_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor.sock");
        let _foreign = UnixListener::bind(&path).unwrap();
        let error = claim(&path, None).unwrap_err().to_string();
        assert!(error.contains(&format!("is served by pid {} (", std::process::id())), "{error}");
        assert_eq!(files(directory.path()), 1, "the lock is given back");
    }

    #[test]
    fn a_second_claim_names_the_first_ones_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor.sock");
        let first = claim(&path, None).unwrap();
        let error = claim(&path, None).unwrap_err().to_string();
        assert!(error.contains(&format!("is served by pid {} (", std::process::id())), "{error}");
        drop(first);
        claim(&path, None).unwrap();
    }

    #[test]
    fn a_stale_lock_file_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor.sock");
        fs::write(directory.path().join("monitor.sock.lock"), "4194305\n").unwrap();
        let claimed = claim(&path, None).unwrap();
        assert_eq!(claimed.path(), path);
        let pid = fs::read_to_string(directory.path().join("monitor.sock.lock")).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
    }

    #[test]
    fn what_is_not_a_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(claim(&path, None), Err(ClaimError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn another_file_that_took_the_path_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor.sock");
        let runtime = runtime();
        let _guard = runtime.enter();
        let listener = claim(&path, None).unwrap().listen().unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn impossible_paths_and_groups_are_refused_in_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(PATH_BYTES_MAX));
        assert!(matches!(claim(&long, None), Err(ClaimError::TooLong { .. })));
        let path = directory.path().join("monitor.sock");
        let error = claim(&path, Some("no-such-group-here")).unwrap_err();
        assert_eq!(error.to_string(), "there is no group \"no-such-group-here\": create it, or change socket_group");
        let error = claim(Path::new("/proc/no/monitor.sock"), None).unwrap_err();
        assert!(error.to_string().starts_with("cannot create the directory /proc/no: run as root"), "{error}");
    }
}
