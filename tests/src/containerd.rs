//! A real containerd that is told what to do as the kubelet tells it, by the Container Runtime Interface: Debian's package
//! `containerd`.

use crate::{
    agent,
    clock::{PATIENCE, wait_until},
    container::{Parent, answer, make_root},
};
use anyhow::{Context, Result};
use hyper::http::uri::PathAndQuery;
use prost::Message;
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::timeout};
use tonic::{Request, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

/// The one image that it has: busybox, asleep.
pub const IMAGE: &str = "localhost/asleep:1";
/// The ids of pods and containers are in this namespace of containerd's.
const NAMESPACE: &str = "--namespace=k8s.io";

/// A containerd with a directory of its own. Its pods, and their cgroups, go when it is dropped.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    directory: TempDir,
    parent: Parent,
    runtime: Runtime,
    pods: Vec<String>,
}

/// Who a pod is.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// Its name.
    pub name: &'static str,
    /// Its namespace.
    pub namespace: &'static str,
    /// Its unique id.
    pub uid: &'static str,
}

/// Ids of a pod that runs, and of its container.
#[derive(Clone, Debug)]
pub struct Running {
    /// Of the container that keeps the pod.
    pub pod: String,
    /// Of the other one.
    pub container: String,
}

impl Containerd {
    /// Starts one, and waits until it answers. It uses runc, and makes cgroups by itself.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        let settings = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[plugins.'io.containerd.internal.v1.opt']\n\
             path = {:?}\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = {IMAGE:?}\nrestrict_oom_score_adj = true\n\
             stream_server_address = '127.0.0.1'\nstream_server_port = '0'\n",
            at("root"),
            at("state"),
            at("containerd.sock"),
            at("opt"),
        );
        fs::write(at("settings.toml"), settings)?;
        let child = Command::new("containerd")
            .args(["--config", &at("settings.toml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(at("log"))?)
            .spawn()
            .context("cannot start containerd: install Debian's package containerd")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let containerd = Self { child, directory, parent: Parent::new("containerd"), runtime, pods: Vec::new() };
        let words = || fs::read_to_string(containerd.directory.path().join("log")).unwrap_or_default();
        wait_until("containerd to answer", PATIENCE, || {
            Ok(containerd.ask::<_, Nothing>("RuntimeService/Status", Nothing {}).ok())
        })
        .with_context(words)?;
        containerd.import()?;
        let status = || containerd.ask("ImageService/ImageStatus", ImageStatus { image: Some(Image::asleep()) });
        wait_until("the image to be known", PATIENCE, || {
            let Known { image } = status()?;
            Ok(image.map(drop))
        })?;
        Ok(containerd)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("containerd.sock")
    }

    /// Where it keeps what it gave to runc.
    pub fn bundles(&self) -> PathBuf {
        self.directory.path().join("state/io.containerd.runtime.v2.task")
    }

    /// Sends it a signal, but not to the shims of its containers.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        agent::send_signal(self.child.id(), signal).context("cannot signal containerd")
    }

    /// Runs a pod on the host's network, with one container of this name, in cgroups as the kubelet has them.
    ///
    /// # Errors
    /// containerd's.
    pub fn run(&mut self, pod: Pod, container: &str) -> Result<Running> {
        let metadata =
            PodMetadata { name: pod.name.to_owned(), uid: pod.uid.to_owned(), namespace: pod.namespace.to_owned() };
        let security = Security { namespaces: Some(Namespaces { network: ON_NODE }) };
        let cgroup_parent = format!("/{}/kubepods/burstable/pod{}", self.parent.name, pod.uid);
        let config =
            PodConfig { metadata: Some(metadata), linux: Some(LinuxPod { cgroup_parent, security: Some(security) }) };
        let Id { id: pod } = self.ask("RuntimeService/RunPodSandbox", RunPod { config: Some(config.clone()) })?;
        self.pods.push(pod.clone());
        let of_container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: container.to_owned() }),
            image: Some(Image::asleep()),
        };
        let create = CreateContainer { pod: pod.clone(), config: Some(of_container), of_pod: Some(config) };
        let created: Id = self.ask("RuntimeService/CreateContainer", create)?;
        let Nothing {} = self.ask("RuntimeService/StartContainer", created.clone())?;
        Ok(Running { pod, container: created.id })
    }

    /// The first process of a container, or of the one that keeps a pod.
    ///
    /// # Errors
    /// containerd's.
    pub fn pid_of(&self, id: &str) -> Result<u32> {
        let tasks = self.ctr(&["tasks", "list"])?;
        let line = tasks.lines().find(|line| line.starts_with(id)).with_context(|| format!("no {id} in {tasks}"))?;
        Ok(line.split_whitespace().nth(1).context("a task without a pid")?.parse()?)
    }

    /// Makes the image known, as an archive of the form that `docker save` writes.
    fn import(&self) -> Result<()> {
        let directory = self.directory.path().join("image");
        make_root(&directory.join("files"))?;
        answer(Command::new("tar").args(["-cf", "layer.tar", "-C", "files", "."]).current_dir(&directory))?;
        let sum = answer(Command::new("sha256sum").arg("layer.tar").current_dir(&directory))?;
        let sum = sum.split(' ').next().unwrap_or_default();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/sleep", "600"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
        });
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        fs::write(directory.join("config.json"), config.to_string())?;
        fs::write(directory.join("manifest.json"), manifest.to_string())?;
        let files = ["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"];
        answer(Command::new("tar").args(files).current_dir(&directory))?;
        self.ctr(&["images", "import", &directory.join("image.tar").display().to_string()]).map(drop)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        answer(Command::new("ctr").arg("--address").arg(self.socket()).arg(NAMESPACE).args(arguments))
    }

    fn ask<Question, Answer>(&self, method: &str, question: Question) -> Result<Answer>
    where
        Question: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{method}"))?;
        let ask = async {
            let channel = Endpoint::from_shared(format!("unix://{}", self.socket().display()))?.connect().await?;
            let mut service = Grpc::new(channel);
            service.ready().await?;
            anyhow::Ok(service.unary(Request::new(question), path, ProstCodec::default()).await?.into_inner())
        };
        // It may be stopped.
        let answer = async { timeout(PATIENCE, ask).await.unwrap_or_else(|late| Err(late.into())) };
        self.runtime.block_on(answer).with_context(|| format!("containerd: {method}"))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A test may have failed while it was stopped.
        let _ = self.signal(libc::SIGCONT);
        for id in &self.pods {
            for method in ["RuntimeService/StopPodSandbox", "RuntimeService/RemovePodSandbox"] {
                if let Err(error) = self.ask::<_, Nothing>(method, Id { id: id.clone() }) {
                    eprintln!("{error:#}");
                }
            }
        }
        agent::end(&mut self.child);
        self.parent.remove();
    }
}

// The messages, as far as they are needed (kubernetes: cri-api, pkg/apis/runtime/v1/api.proto).

/// Every message without a field that is looked at.
#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// Every message with an id alone.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPod>,
}

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPod {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
}

/// The namespace of the host.
const ON_NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    of_pod: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

impl Image {
    fn asleep() -> Self {
        Self { image: IMAGE.to_owned() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatus {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

/// What is known of an image; nothing of one that is not there.
#[derive(Clone, PartialEq, Message)]
struct Known {
    #[prost(message, optional, tag = "1")]
    image: Option<Nothing>,
}
