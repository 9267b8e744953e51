//! What a cgroup's path tells: the container it belongs to, the pod, the systemd unit and slice. Pure, by the shapes that
//! runtimes, the kubelet and systemd give to paths. Names that no path tells come from `collect::container`.
//!
//! A cgroup below a container's belongs to that container, and to the innermost one where a container runs others. Units
//! and slices are those of the host's service manager and of its users', never those of one inside a container.

use crate::sample::{FoundContainer, Runtime};
use serde::{Deserialize, Serialize};

/// One container, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id: 64 hexadecimal digits.
    pub id: std::sync::Arc<str>,
    /// Who runs it; none where nobody tells.
    pub runtime: Option<Runtime>,
    /// Its name; none where it has none, or none was found.
    pub name: Option<String>,
    /// The pod it is in.
    pub pod: Option<String>,
    /// The pod's Kubernetes namespace.
    pub namespace: Option<String>,
    /// The pod's unique id, as the API server writes it.
    pub pod_uid: Option<String>,
    /// The image, as whoever started it named it.
    pub image: Option<String>,
}

impl Container {
    /// The container that the cgroup of this path belongs to, with what the path tells of it.
    ///
    /// `path` is that below the hierarchy's root, with a slash at its beginning.
    pub fn of_path(path: &str) -> Option<Self> {
        let (mut innermost, mut uid, mut parent) = (None, None, "");
        for directory in path.split('/') {
            uid = pod_uid(directory).or(uid);
            if let Some((runtime, id)) = container_id(directory, parent) {
                innermost = Some(Self { id: id.into(), runtime, pod_uid: uid.clone(), ..Self::default() });
            }
            parent = directory;
        }
        innermost
    }

    /// Takes in what was found. What the path has told stays.
    pub(super) fn learn(&mut self, found: &FoundContainer) {
        let FoundContainer { id: _, runtime, name, pod, namespace, pod_uid, image } = found.clone();
        self.runtime = self.runtime.or(runtime);
        self.pod_uid = self.pod_uid.take().or(pod_uid);
        self.name = name.or(self.name.take());
        self.pod = pod.or(self.pod.take());
        self.namespace = namespace.or(self.namespace.take());
        self.image = image.or(self.image.take());
    }

    /// Whether all is known that files are expected to tell. A pod's first container has no name of its own.
    pub(super) fn is_named(&self) -> bool {
        self.pod.is_some() || self.pod_uid.is_none() && self.name.is_some()
    }

    /// Whether somebody who says `text` means it: its name, or at least [`SHORT_ID`] digits of its id's beginning.
    pub fn answers_to(&self, text: &str) -> bool {
        self.name.as_deref() == Some(text) || text.len() >= SHORT_ID && self.id.starts_with(text)
    }

    /// Its name for people: "namespace/pod/name" as far as known, else the short id.
    pub fn label(&self) -> String {
        let parts = [&self.namespace, &self.pod, &self.name].map(Option::as_deref);
        let known: Vec<_> = parts.into_iter().flatten().collect();
        if known.is_empty() { self.id.chars().take(SHORT_ID).collect() } else { known.join("/") }
    }
}

/// Digits of an id that runtimes' own tools show and take.
pub const SHORT_ID: usize = 12;
/// Digits of a whole one: they are 256 random bits.
const ID: usize = 64;

/// What stands before the id in the name of a container's cgroup, and who names it so. The same words are used by both
/// drivers: "docker-ID.scope" is made by systemd, "crio-ID" by the runtime itself.
static PREFIXES: [(&str, Runtime); 6] = [
    // moby: daemon/oci_linux.go, scopePrefix.
    ("docker", Runtime::Docker),
    // podman: libpod/container_internal_linux.go, and "payload" with --cgroups=split. Their monitors are libpod-conmon-ID.
    ("libpod", Runtime::Podman),
    ("libpod-payload", Runtime::Podman),
    // containerd: internal/cri/server/helpers_linux.go, getCgroupsPath.
    ("cri-containerd", Runtime::Containerd),
    // cri-o: internal/config/cgmgr, crioPrefix. Its monitors are crio-conmon-ID.
    ("crio", Runtime::CriO),
    // nerdctl: pkg/cmd/container/run_cgroup_linux.go.
    ("nerdctl", Runtime::Containerd),
];

/// Who names cgroups by an id alone, below a directory of this name. Elsewhere, as below a pod's, the path does not tell.
static PARENTS: [(&str, Runtime); 2] = [
    // moby: daemon/oci_linux.go, the default parent with the driver cgroupfs.
    ("docker", Runtime::Docker),
    // containerd's namespace of containers that the kubelet made, where the kubelet names no parent.
    ("k8s.io", Runtime::Containerd),
];

/// Below this directory an id alone is that of a podman pod (podman: libpod/runtime_pod_linux.go).
const PODMAN_PODS: &str = "libpod_parent";

/// Runtime and id, when a directory of this name below `parent` is that of a container.
fn container_id<'a>(directory: &'a str, parent: &str) -> Option<(Option<Runtime>, &'a str)> {
    let name = directory.strip_suffix(".scope").unwrap_or(directory);
    // runc without its systemd driver makes a directory of what was meant for systemd: "system.slice:docker:ID".
    let (before, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
    let is_id = id.len() == ID && id.bytes().all(is_digit);
    if !is_id {
        return None;
    }
    if before.is_empty() {
        let runtime = PARENTS.iter().find(|(name, _)| *name == parent).map(|(_, runtime)| *runtime);
        return (parent != PODMAN_PODS).then_some((runtime, id));
    }
    let prefix = before.rsplit(':').next()?;
    let (_, runtime) = PREFIXES.iter().find(|(known, _)| *known == prefix)?;
    Some((Some(*runtime), id))
}

/// The unique id of the pod whose cgroup has this name (kubelet: pkg/kubelet/cm/pod_container_manager_linux.go): "podUID"
/// by the driver cgroupfs, "kubepods-besteffort-podUID.slice" by systemd, which needs dashes to be written as "_".
fn pod_uid(directory: &str) -> Option<String> {
    let name = directory.split(':').next()?;
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").filter(|(above, _)| above.contains("kubepods"))?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

/// A UUID, or for pods from a node's own files a hash of 32 digits (kubelet: pkg/kubelet/config/common.go).
fn is_uid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').map(str::len).collect();
    (groups == [8, 4, 4, 4, 12] || groups == [32]) && text.bytes().all(|byte| byte == b'-' || is_digit(byte))
}

const fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Kinds of systemd units that have cgroups (systemd.unit(5)), besides slices.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
/// Where a user's own service manager runs, which has units and slices again.
const USER_MANAGER: &str = "user@";

/// The systemd unit that the cgroup of this path belongs to: a user's, where it is one that a user's manager made.
pub fn unit(path: &str) -> Option<&str> {
    placed(path).unit.map(|(name, _)| name)
}

/// The slice that unit is in, or the innermost slice where there is no unit.
pub fn slice(path: &str) -> Option<&str> {
    placed(path).slice
}

/// The path of that unit's own cgroup: two users may have units of one name.
pub(super) fn unit_path(path: &str) -> Option<&str> {
    placed(path).unit.map(|(_, whole)| whole)
}

/// What systemd made of a path.
#[derive(Clone, Copy, Debug, Default)]
struct Placed<'a> {
    /// The unit's name, and the path down to it.
    unit: Option<(&'a str, &'a str)>,
    slice: Option<&'a str>,
}

/// Unit and slice, as systemd finds them (src/basic/cgroup-util.c): the first unit below slices alone, and for a user's
/// manager the first one below that and slices alone.
fn placed(path: &str) -> Placed<'_> {
    let mut placed = Placed::default();
    let mut end = 0;
    for escaped in path.split('/') {
        let whole = &path[..end + escaped.len()];
        end = whole.len() + 1;
        if escaped.is_empty() {
            continue;
        }
        let directory = unescaped(escaped);
        if is_named(directory, ".slice") {
            placed.slice = Some(directory);
        } else if UNITS.iter().any(|kind| is_named(directory, kind)) {
            placed.unit = Some((directory, whole));
            if !directory.starts_with(USER_MANAGER) {
                break;
            }
        } else {
            break;
        }
    }
    placed
}

fn is_named(directory: &str, kind: &str) -> bool {
    directory.strip_suffix(kind).is_some_and(|stem| !stem.is_empty())
}

/// systemd puts "_" before names that the kernel's own files could have (src/basic/cgroup-util.c, cg_escape).
fn unescaped(directory: &str) -> &str {
    directory.strip_prefix('_').unwrap_or(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Runtime::{Containerd, CriO, Docker, Podman};

    const ID: &str = "0f3c7a1be5d24c6890ab12cd34ef56ab78901234567890abcdefabcdefabcd01";
    const OTHER: &str = "99887766554433221100ffeeddccbbaa99887766554433221100ffeeddccbbaa";
    const UID: &str = "6f1d3c2e-0b7a-4f5e-9c1d-2a3b4c5d6e7f";
    const UID_ESCAPED: &str = "6f1d3c2e_0b7a_4f5e_9c1d_2a3b4c5d6e7f";
    /// Of a pod from a node's own files.
    const UID_STATIC: &str = "d4e5f60718293a4b5c6d7e8f90a1b2c3";

    /// A path with the words above in it.
    fn path(template: &str) -> String {
        let words =
            [("{id}", ID), ("{other}", OTHER), ("{uid}", UID), ("{uid_}", UID_ESCAPED), ("{static}", UID_STATIC)];
        words.iter().fold(template.to_owned(), |path, (word, value)| path.replace(word, value))
    }

    /// Runtime, id and pod of a path.
    fn told(template: &str) -> Option<(Option<Runtime>, String, Option<String>)> {
        Container::of_path(&path(template)).map(|c| (c.runtime, c.id.to_string(), c.pod_uid))
    }

    #[test]
    fn every_shape_of_a_containers_path_is_known() {
        let shapes: [(&str, Option<Runtime>, Option<&str>); 29] = [
            // Docker, by cgroupfs, by systemd, and by runc that was given what is meant for systemd.
            ("/docker/{id}", Some(Docker), None),
            ("/system.slice/docker-{id}.scope", Some(Docker), None),
            ("/system.slice:docker:{id}", Some(Docker), None),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{id}.scope", Some(Docker), None),
            ("/my-parent/{id}", None, None),
            // podman: by systemd, cgroupfs, crun's sub-cgroup, a unit that splits, a pod, rootless.
            ("/machine.slice/libpod-{id}.scope", Some(Podman), None),
            ("/machine.slice/libpod-{id}.scope/container", Some(Podman), None),
            ("/libpod_parent/libpod-{id}", Some(Podman), None),
            ("/libpod_parent/{other}/libpod-{id}", Some(Podman), None),
            ("/system.slice/web.service/libpod-payload-{id}", Some(Podman), None),
            ("/machine.slice/machine-libpod_pod_{other}.slice/libpod-{id}.scope", Some(Podman), None),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{id}.scope/container",
                Some(Podman),
                None,
            ),
            // nerdctl.
            ("/system.slice/nerdctl-{id}.scope", Some(Containerd), None),
            ("/default/{id}", None, None),
            // The kubelet by cgroupfs: guaranteed, burstable, best effort, and a pod from a file.
            ("/kubepods/pod{uid}/{id}", None, Some(UID)),
            ("/kubepods/burstable/pod{uid}/{id}", None, Some(UID)),
            ("/kubepods/besteffort/pod{static}/{id}", None, Some(UID_STATIC)),
            ("/kubepods/burstable/pod{uid}/crio-{id}", Some(CriO), Some(UID)),
            ("/k8s.io/{id}", Some(Containerd), None),
            // The kubelet by systemd.
            ("/kubepods.slice/kubepods-pod{uid_}.slice/cri-containerd-{id}.scope", Some(Containerd), Some(UID)),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/cri-containerd-{id}.scope",
                Some(Containerd),
                Some(UID),
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{static}.slice/crio-{id}.scope",
                Some(CriO),
                Some(UID_STATIC),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/crio-{id}.scope/container",
                Some(CriO),
                Some(UID),
            ),
            ("/kubepods.slice/kubepods-pod{uid_}.slice/docker-{id}.scope", Some(Docker), Some(UID)),
            // containerd without its systemd driver under a kubelet with it.
            (
                "/system.slice/containerd.service/kubepods-burstable-pod{uid_}.slice:cri-containerd:{id}",
                Some(Containerd),
                Some(UID),
            ),
            // Below a container: what it made itself, Docker in Docker, a node of Kubernetes in Docker.
            ("/system.slice/docker-{id}.scope/init.scope", Some(Docker), None),
            ("/docker/{other}/docker/{id}", Some(Docker), None),
            ("/kubepods/burstable/pod{uid}/{other}/docker/{id}/app", Some(Docker), Some(UID)),
            (
                "/docker/{other}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                 kubelet-kubepods-burstable-pod{uid_}.slice/cri-containerd-{id}.scope",
                Some(Containerd),
                Some(UID),
            ),
        ];
        for (template, runtime, uid) in shapes {
            assert_eq!(told(template), Some((runtime, ID.to_owned(), uid.map(str::to_owned))), "{template}");
        }
    }

    #[test]
    fn what_is_beside_containers_is_none() {
        let others = [
            "/",
            "",
            "/docker",
            "/system.slice/docker.service",
            "/kubepods/burstable/pod{uid}",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice",
            // The monitors of CRI-O's and podman's containers, and a podman pod.
            "/system.slice/crio-conmon-{id}.scope",
            "/kubepods/burstable/pod{uid}/crio-conmon-{id}",
            "/machine.slice/libpod-conmon-{id}.scope",
            "/libpod_parent/conmon",
            "/libpod_parent/{id}",
            "/machine.slice/machine-libpod_pod_{id}.slice",
            // Nearly an id.
            "/docker/0f3c7a1be5d2",
            "/docker/0F3C7A1BE5D24C6890AB12CD34EF56AB78901234567890ABCDEFABCDEFABCD01",
            "/docker/x{id}",
            "/docker/buildkit/tj3ag5kfzvq8m2i7c0d9w4xyb",
            "/build/sha256-{id}",
        ];
        for template in others {
            assert_eq!(told(template), None, "{template}");
        }
    }

    #[test]
    fn units_and_slices_are_the_hosts_and_its_users() {
        let shapes: [(&str, Option<&str>, Option<&str>); 16] = [
            ("/", None, None),
            ("/init.scope", Some("init.scope"), None),
            ("/system.slice", None, Some("system.slice")),
            ("/system.slice/nginx.service", Some("nginx.service"), Some("system.slice")),
            ("/system.slice/nginx.service/payload", Some("nginx.service"), Some("system.slice")),
            ("/system.slice/a.service/b.service", Some("a.service"), Some("system.slice")),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                Some("getty@tty1.service"),
                Some("system-getty.slice"),
            ),
            (r"/system.slice/mnt-a\x2db.mount", Some(r"mnt-a\x2db.mount"), Some("system.slice")),
            // Escaped, as it could be one of the kernel's own files.
            ("/system.slice/_cpu.service", Some("cpu.service"), Some("system.slice")),
            ("/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope"), Some("user-1000.slice")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", Some("x.service"), Some("app.slice")),
            ("/user.slice/user-1000.slice/user@1000.service", Some("user@1000.service"), Some("user-1000.slice")),
            // A container's own service manager is not the host's.
            ("/docker/{id}/system.slice/nginx.service", None, None),
            ("/kubepods/burstable/pod{uid}/{id}", None, None),
            (
                "/kubepods.slice/kubepods-pod{uid_}.slice/crio-{id}.scope/system.slice/nginx.service",
                Some("crio-{id}.scope"),
                Some("kubepods-pod{uid_}.slice"),
            ),
            ("/.service/.slice", None, None),
        ];
        for (template, unit, slice) in shapes {
            let whole = path(template);
            let expected = (unit.map(path), slice.map(path));
            let told = (super::unit(&whole).map(str::to_owned), super::slice(&whole).map(str::to_owned));
            assert_eq!(told, expected, "{template}");
            let whole_of_unit = unit_path(&whole).map(|path| path.rsplit('/').next().unwrap_or_default());
            assert_eq!(whole_of_unit.map(unescaped), unit.map(path).as_deref(), "{template}");
            assert!(unit_path(&whole).is_none_or(|unit| whole.starts_with(unit)), "{template}");
        }
    }

    #[test]
    fn a_container_answers_to_its_name_and_to_the_beginning_of_its_id() {
        let container = Container { id: ID.into(), name: Some("web".into()), ..Container::default() };
        assert!(container.answers_to("web") && container.answers_to(ID) && container.answers_to(&ID[..SHORT_ID]));
        for other in ["we", "webs", "", &ID[..SHORT_ID - 1], OTHER] {
            assert!(!container.answers_to(other), "{other}");
        }
    }

    #[test]
    fn its_label_has_what_is_known() {
        let mut container = Container { id: ID.into(), ..Container::default() };
        assert_eq!(container.label(), "0f3c7a1be5d2");
        container.name = Some("nginx".into());
        assert_eq!(container.label(), "nginx");
        (container.pod, container.namespace) = (Some("web-0".into()), Some("shop".into()));
        assert_eq!(container.label(), "shop/web-0/nginx");
    }

    #[test]
    fn what_a_path_told_is_not_overruled() {
        let mut container = Container::of_path(&path("/kubepods/pod{uid}/crio-{id}")).unwrap();
        assert!(!container.is_named());
        container.learn(&FoundContainer {
            runtime: Some(Docker),
            pod_uid: Some(UID_STATIC.into()),
            pod: Some("web-0".into()),
            ..FoundContainer::default()
        });
        assert_eq!((container.runtime, container.pod_uid.as_deref()), (Some(CriO), Some(UID)));
        assert!(container.is_named() && container.name.is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_path_is_a_panic(path: String) {
            let told = (Container::of_path(&path), unit(&path), slice(&path));
            proptest::prop_assert!(told.0.is_none_or(|container| container.id.len() == 64));
        }
    }
}
