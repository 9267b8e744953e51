//! Names of containers, out of the files that runtimes and the kubelet keep about them, and of a runtime itself. Looked for
//! when a container appears.
//!
//! A file that is not there, not yet or not any more, tells nothing; so does one that cannot be read or understood. Where a
//! runtime is to be asked for what they leave open, its answer is taken when it is there: nobody waits.

use crate::{
    config::{self, Containers},
    sample::{FoundContainer, Runtime},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::HashMap, fs, io::Read as _, iter, mem, path::Path, sync::Arc};
use tokio::sync::mpsc::{self, error::TrySendError};

/// Looks whether a runtime can be asked, where one is to be.
///
/// # Errors
/// This agent was built without what that takes.
pub fn check(config: &Containers) -> Result<(), config::Error> {
    check_for(config, cfg!(feature = "cri"))
}

fn check_for(config: &Containers, can_ask: bool) -> Result<(), config::Error> {
    match &config.cri {
        Some(socket) if !can_ask => Err(config::Error::Conflict(format!(
            "containers.cri = {socket:?} is refused: this monitor was built without `--features cri`"
        ))),
        _ => Ok(()),
    }
}

/// Finds names in files, and by a runtime where they do not tell.
#[derive(Debug)]
pub struct ContainerNames {
    places: Containers,
    service: Option<RuntimeService>,
}

/// A runtime that is asked by somebody else.
#[derive(Debug)]
pub struct RuntimeService {
    /// Takes the ids of those to ask for, until they are answered.
    pub ask: mpsc::Sender<Vec<Arc<str>>>,
    /// What it told of those that it knows.
    pub told: mpsc::Receiver<Vec<FoundContainer>>,
}

/// Larger files are not read. A container's own has some 20 KiB, a storage's list 500 bytes for each container.
const FILE_BYTES_MAX: u64 = 8 << 20;

impl ContainerNames {
    /// In these places.
    pub fn new(places: Containers) -> Self {
        Self { places, service: None }
    }

    /// From now on asks a runtime for those whose pod, or image, no file tells.
    pub fn also_ask(&mut self, service: RuntimeService) {
        self.service = Some(service);
    }

    /// What is told of each of these ids, which may be nothing; and what the runtime told of those asked for before.
    pub fn find(&mut self, ids: &[Arc<str>]) -> Vec<FoundContainer> {
        let mut found = self.find_in_files(ids);
        let Some(service) = &mut self.service else { return found };
        // A pod's first container has neither name nor image.
        let is_open = |found: &&FoundContainer| found.pod.is_none() || found.name.is_some() && found.image.is_none();
        let open: Vec<_> = found.iter().filter(is_open).map(|found| Arc::clone(&found.id)).collect();
        let is_closed = !open.is_empty() && matches!(service.ask.try_send(open), Err(TrySendError::Closed(_)));
        for told in iter::from_fn(|| service.told.try_recv().ok()).flatten() {
            match found.iter_mut().find(|found| found.id == told.id) {
                Some(known) => *known = told.or(mem::take(known)),
                None => found.push(told),
            }
        }
        if is_closed {
            log::error!("containers.cri: nobody asks any more; from now on names come from files alone");
            self.service = None;
        }
        found
    }

    fn find_in_files(&self, ids: &[Arc<str>]) -> Vec<FoundContainer> {
        if !self.places.names {
            return ids.iter().map(nothing).collect();
        }
        let mut found: Vec<_> = ids.iter().map(|id| nothing(id).or(self.own_file(id).unwrap_or_default())).collect();
        // These are read once for all of them, and only where the files before left something to tell.
        if found.iter().any(FoundContainer::tells_nothing) {
            complete(found.iter_mut().filter(|found| found.tells_nothing()), &self.storage_lists());
        }
        if found.iter().any(|found| found.pod.is_none()) {
            complete(found.iter_mut().filter(|found| found.pod.is_none()), &log_links(&self.places.logs));
        }
        found
    }

    /// The file that a runtime keeps of this container alone.
    fn own_file(&self, id: &str) -> Option<FoundContainer> {
        let docker = || docker_config(&self.places.docker.join(id).join("config.v2.json"));
        let containerd = || {
            let namespaces = fs::read_dir(&self.places.containerd).ok()?.flatten();
            let mut bundles = namespaces.map(|namespace| namespace.path().join(id));
            bundles.find_map(|bundle| bundle_config(&bundle, Runtime::Containerd))
        };
        let cri_o = || {
            let bundle = self.places.storage_run.join(STORAGE).join(id).join("userdata");
            bundle_config(&bundle, Runtime::CriO)
        };
        docker().or_else(containerd).or_else(cri_o)
    }

    /// Everything that podman has.
    fn storage_lists(&self) -> HashMap<String, FoundContainer> {
        let directories = [&self.places.storage, &self.places.storage_run].map(|root| root.join(STORAGE));
        let files = directories.iter().flat_map(|directory| STORAGE_LISTS.map(|name| directory.join(name)));
        files.flat_map(|file| read_json::<Vec<StoredContainer>>(&file)).flatten().map(StoredContainer::told).collect()
    }
}

fn nothing(id: &Arc<str>) -> FoundContainer {
    FoundContainer { id: Arc::clone(id), ..FoundContainer::default() }
}

/// Adds what a list tells. It goes before what is known: a pod's containers have other names for their runtime.
fn complete<'a>(found: impl Iterator<Item = &'a mut FoundContainer>, list: &HashMap<String, FoundContainer>) {
    for found in found {
        if let Some(told) = list.get(&*found.id) {
            let told = FoundContainer { id: Arc::clone(&found.id), ..told.clone() };
            *found = told.or(mem::take(found));
        }
    }
}

/// Docker's own description (moby: container/container.go, `Container`, as its daemon writes it down).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerContainer {
    /// With a slash before it.
    name: String,
    config: DockerConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    image: Option<String>,
    /// The kubelet's, where it made the container.
    labels: Option<HashMap<String, String>>,
}

fn docker_config(file: &Path) -> Option<FoundContainer> {
    let DockerContainer { name, config } = read_json(file)?;
    let labelled = annotated(&config.labels.unwrap_or_default());
    let own = FoundContainer {
        runtime: Some(Runtime::Docker),
        name: known(name.trim_start_matches('/')),
        image: config.image.as_deref().and_then(known),
        ..FoundContainer::default()
    };
    Some(labelled.or(own))
}

/// What runc is told to run (OCI runtime specification, config.md), of which only the annotations name anything.
#[derive(Deserialize)]
struct Bundle {
    annotations: Option<HashMap<String, String>>,
}

fn bundle_config(bundle: &Path, runtime: Runtime) -> Option<FoundContainer> {
    let Bundle { annotations } = read_json(&bundle.join("config.json"))?;
    let told = annotated(&annotations.unwrap_or_default());
    (!told.tells_nothing()).then_some(FoundContainer { runtime: Some(runtime), ..told })
}

/// Keys of annotations and labels, of containerd (internal/cri/annotations), of the kubelet (pkg/kubelet/types/labels.go,
/// which CRI-O passes on), of CRI-O (pkg/annotations) and of nerdctl (pkg/labels).
const NAME: [&str; 3] = ["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"];
const POD: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"];
const NAMESPACE: [&str; 2] = ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"];
const POD_UID: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];
const IMAGE: [&str; 2] = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"];

fn annotated(annotations: &HashMap<String, String>) -> FoundContainer {
    let first = |keys: &[&str]| keys.iter().find_map(|key| known(annotations.get(*key)?));
    FoundContainer {
        name: first(&NAME),
        pod: first(&POD),
        namespace: first(&NAMESPACE),
        pod_uid: first(&POD_UID),
        image: first(&IMAGE),
        ..FoundContainer::default()
    }
}

/// Where a storage has its containers, by the driver that nearly all have (containers-storage.conf(5)).
const STORAGE: &str = "overlay-containers";
/// The lists in it: of those that stay, and of those that go when they end (containers/storage: containers.go).
const STORAGE_LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

/// A line of such a list.
#[derive(Deserialize)]
struct StoredContainer {
    id: String,
    names: Option<Vec<String>>,
    /// JSON once more, of whoever stored it.
    metadata: Option<String>,
}

/// What podman stores (podman: libpod/storage.go).
#[derive(Deserialize)]
struct StoredMetadata {
    #[serde(rename = "image-name")]
    image: Option<String>,
}

impl StoredContainer {
    fn told(self) -> (String, FoundContainer) {
        let metadata = self.metadata.and_then(|text| serde_json::from_str::<StoredMetadata>(&text).ok());
        let told = FoundContainer {
            name: self.names.into_iter().flatten().find_map(|name| known(&name)),
            image: metadata.and_then(|metadata| known(&metadata.image?)),
            ..FoundContainer::default()
        };
        (self.id, told)
    }
}

/// What the names of the kubelet's links to logs tell, by container id.
fn log_links(directory: &Path) -> HashMap<String, FoundContainer> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| log_link(entry.file_name().to_str()?)).collect()
}

/// "POD_NAMESPACE_CONTAINER-ID.log" (kubelet: pkg/kubelet/kuberuntime/legacy.go). Neither of the three has a "_" in it.
fn log_link(name: &str) -> Option<(String, FoundContainer)> {
    let (names, id) = name.strip_suffix(".log")?.rsplit_once('-')?;
    let mut names = names.split('_').map(str::to_owned);
    let (pod, namespace, name) = (names.next()?, names.next()?, names.next()?);
    let told = FoundContainer { name: Some(name), pod: Some(pod), namespace: Some(namespace), ..Default::default() };
    names.next().is_none().then(|| (id.to_owned(), told))
}

/// Longer names are none: those of Kubernetes have 253 bytes at most, an image with its digest some more.
const NAME_BYTES_MAX: usize = 1024;

/// A text that is a name.
pub(super) fn known(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= NAME_BYTES_MAX).then(|| text.to_owned())
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let mut text = Vec::new();
    fs::File::open(file).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tempfile::TempDir;

    const ID: &str = "0f3c7a1be5d24c6890ab12cd34ef56ab78901234567890abcdefabcdefabcd01";
    const OTHER: &str = "99887766554433221100ffeeddccbbaa99887766554433221100ffeeddccbbaa";

    /// A host's directories, empty but for these files.
    struct Host {
        root: TempDir,
    }

    impl Host {
        fn with(files: &[(&str, &str)]) -> Self {
            let host = Self { root: tempfile::tempdir().unwrap() };
            for (path, text) in files {
                let path = host.path(&path.replace("ID", ID));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text.replace("ID", ID)).unwrap();
            }
            host
        }

        fn path(&self, below: &str) -> PathBuf {
            self.root.path().join(below)
        }

        fn files(&self) -> ContainerNames {
            let places = Containers {
                names: true,
                logs: self.path("logs"),
                docker: self.path("docker"),
                containerd: self.path("tasks"),
                storage: self.path("storage"),
                storage_run: self.path("run"),
                cri: None,
            };
            ContainerNames::new(places)
        }

        fn find(&self, ids: &[&str]) -> Vec<FoundContainer> {
            self.files().find(&ids.iter().map(|id| Arc::from(*id)).collect::<Vec<_>>())
        }

        fn one(&self) -> FoundContainer {
            self.find(&[ID]).pop().unwrap()
        }
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn docker_tells_name_and_image() {
        let config = r#"{"StreamConfig":{},"ID":"ID","Path":"nginx","Args":[],"Config":{"Hostname":"0f3c","Labels":{},
            "Image":"nginx:1.27"},"Image":"sha256:9c7a","Name":"/web","RestartCount":0}"#;
        let found = Host::with(&[("docker/ID/config.v2.json", config)]).one();
        assert_eq!(
            (found.runtime, &found.name, &found.image),
            (Some(Runtime::Docker), &text("web"), &text("nginx:1.27"))
        );
        assert_eq!((&found.pod, &*found.id), (&None, ID));
    }

    #[test]
    fn in_a_pod_the_kubelets_names_go_before_dockers() {
        let config = r#"{"Name":"/k8s_nginx_web-0_shop_6f1d_0","Config":{"Image":"nginx@sha256:9c7a","Labels":{
            "io.kubernetes.container.name":"nginx","io.kubernetes.pod.name":"web-0","io.kubernetes.pod.namespace":"shop",
            "io.kubernetes.pod.uid":"6f1d"}}}"#;
        let found = Host::with(&[("docker/ID/config.v2.json", config)]).one();
        assert_eq!((found.name, found.pod, found.namespace), (text("nginx"), text("web-0"), text("shop")));
    }

    #[test]
    fn containerds_bundle_tells_a_pods_container_in_any_namespace() {
        let config = r#"{"ociVersion":"1.1.0","process":{"args":["nginx"]},"annotations":{
            "io.kubernetes.cri.container-name":"nginx","io.kubernetes.cri.container-type":"container",
            "io.kubernetes.cri.image-name":"docker.io/library/nginx:1.27","io.kubernetes.cri.sandbox-id":"99",
            "io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop",
            "io.kubernetes.cri.sandbox-uid":"6f1d"}}"#;
        let found = Host::with(&[("tasks/k8s.io/ID/config.json", config), ("tasks/default/x/config.json", "{}")]).one();
        let expected = FoundContainer {
            id: ID.into(),
            runtime: Some(Runtime::Containerd),
            name: text("nginx"),
            pod: text("web-0"),
            namespace: text("shop"),
            pod_uid: text("6f1d"),
            image: text("docker.io/library/nginx:1.27"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn cri_os_bundle_tells_a_pods_container() {
        let config = r#"{"annotations":{"io.kubernetes.container.name":"nginx","io.kubernetes.cri-o.ImageName":"nginx:1.27",
            "io.kubernetes.pod.name":"web-0","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"6f1d"}}"#;
        let found = Host::with(&[("run/overlay-containers/ID/userdata/config.json", config)]).one();
        assert_eq!(
            (found.runtime, &found.name, &found.image),
            (Some(Runtime::CriO), &text("nginx"), &text("nginx:1.27"))
        );
        assert_eq!((found.pod, found.namespace, found.pod_uid), (text("web-0"), text("shop"), text("6f1d")));
    }

    #[test]
    fn podmans_lists_tell_names_and_images() {
        // As podman 4.3 writes it; without an image, its name is empty.
        let list = r#"[{"id":"ID","names":["my-trainer"],"image":"","layer":"f539",
            "metadata":"{\"image-name\":\"\",\"image-id\":\"\",\"name\":\"my-trainer\",\"created-at\":1795272012}",
            "created":"2026-11-21T14:40:12.518927411Z","flags":{"MountLabel":"","ProcessLabel":""}}]"#;
        let found = Host::with(&[("storage/overlay-containers/containers.json", list)]).find(&[OTHER, ID]);
        assert!(found[0].tells_nothing() && &*found[0].id == OTHER);
        assert_eq!((&found[1].name, &found[1].image), (&text("my-trainer"), &None));
        let volatile = r#"[{"id":"ID","names":["once"],"metadata":"{\"image-name\":\"docker.io/library/busybox\"}"}]"#;
        let found = Host::with(&[("run/overlay-containers/volatile-containers.json", volatile)]).one();
        assert_eq!((found.name, found.image), (text("once"), text("docker.io/library/busybox")));
    }

    #[test]
    fn the_kubelets_links_tell_pod_namespace_and_container() {
        let host = Host::with(&[("logs/web-7d9f-x2x_shop_nginx-proxy-ID.log", ""), ("logs/notes.txt", "")]);
        let found = host.one();
        assert_eq!((found.name, found.pod, found.namespace), (text("nginx-proxy"), text("web-7d9f-x2x"), text("shop")));
        for other in ["ID.log", "a_b-ID.log", "a_b_c_d-ID.log", "a_b_c-ID", "a_b_c"] {
            assert_eq!(log_link(&other.replace("ID", ID)), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_there_or_not_understood_tells_nothing() {
        assert!(Host::with(&[]).one().tells_nothing());
        let broken = [
            ("docker/ID/config.v2.json", "{\"Name\":\"/we"),
            ("tasks/k8s.io/ID/config.json", "[]"),
            ("run/overlay-containers/ID/userdata/config.json", "{\"annotations\":{}}"),
            ("storage/overlay-containers/containers.json", "null"),
        ];
        assert!(Host::with(&broken).one().tells_nothing());
    }

    #[test]
    fn a_runtime_can_be_asked_where_that_was_built_in() {
        let default = config::Config::default().containers;
        assert!(check_for(&default, false).is_ok());
        let asking = Containers { cri: Some("/run/cri.sock".to_owned()), ..default };
        assert!(check_for(&asking, true).is_ok());
        let refused = check_for(&asking, false).unwrap_err().to_string();
        assert!(refused.contains("--features cri"), "{refused}");
    }

    #[test]
    fn a_runtime_is_asked_for_what_no_file_tells_and_its_answer_is_added() {
        let bundle = r#"{"annotations":{"io.kubernetes.cri.container-name":"redis","io.kubernetes.cri.image-name":"redis:7",
            "io.kubernetes.cri.sandbox-name":"cache-0"}}"#;
        let first = r#"{"annotations":{"io.kubernetes.cri.sandbox-name":"cache-0"}}"#;
        let host = Host::with(&[
            ("logs/web-0_shop_nginx-ID.log", ""),
            ("tasks/k8s.io/complete/config.json", bundle),
            ("tasks/k8s.io/first/config.json", first),
        ]);
        let mut files = host.files();
        let ((ask, mut asked), (tell, told)) = (mpsc::channel(1), mpsc::channel(1));
        files.also_ask(RuntimeService { ask, told });
        let ids = [ID, OTHER, "complete", "first"].map(Arc::from);
        let names = |found: Vec<FoundContainer>| found.into_iter().map(|found| found.name).collect::<Vec<_>>();
        assert_eq!(names(files.find(&ids)), [text("nginx"), None, text("redis"), None]);
        // The link tells no image, and of the other one nothing is told.
        assert_eq!(asked.try_recv(), Ok([ID, OTHER].map(Arc::from).to_vec()));
        let image = FoundContainer { id: ID.into(), image: text("nginx:1.27"), ..FoundContainer::default() };
        let late = FoundContainer { id: OTHER.into(), name: text("late"), ..FoundContainer::default() };
        tell.try_send(vec![image, late]).unwrap();
        let found = files.find(&ids[..1]);
        assert_eq!((&found[0].name, &found[0].image), (&text("nginx"), &text("nginx:1.27")));
        assert_eq!((found.len(), &found[1].name), (2, &text("late")));
        assert!(files.find(&[]).is_empty());
        drop((asked, tell));
        for _ in 0..2 {
            assert_eq!(names(files.find(&ids)), [text("nginx"), None, text("redis"), None], "it has ended");
        }
    }

    #[test]
    fn switched_off_it_reads_nothing() {
        let host = Host::with(&[("logs/web-0_shop_nginx-ID.log", "")]);
        assert!(!host.one().tells_nothing());
        let places = Containers { names: false, logs: host.path("logs"), ..config::Config::default().containers };
        assert!(ContainerNames::new(places).find(&[ID.into()])[0].tells_nothing());
    }
}
