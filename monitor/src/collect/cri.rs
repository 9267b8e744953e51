//! Names of containers that no file tells, asked of their runtime by the Container Runtime Interface (CRI), version 1.
//!
//! A task of the servers asks, so that a runtime that hangs hangs no tick; what it answers is taken in with the next one. It
//! connects for each question, as there are few: only who appears is asked for.

use super::container::{RuntimeService, known};
use crate::{sample::FoundContainer, units::show_duration};
use anyhow::{Context as _, Result, anyhow};
use hyper::http::uri::PathAndQuery;
use prost::Message;
use std::{
    collections::{BTreeSet, HashMap},
    iter,
    sync::Arc,
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc, time::timeout};
use tonic::{
    Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// How long a runtime may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time from a question that was not answered to the next, unless somebody new is to be asked for.
const RETRY: Duration = Duration::from_secs(10);
/// Containers that may wait for an answer; a node of Kubernetes has some hundreds.
const OPEN_MAX: usize = 4096;
/// So many are asked for one by one; for more, everything is listed.
const ASKED_SINGLY: usize = 8;
/// Longer answers are refused. A container takes some 2 KiB, and as much more as its pod has annotations.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Begins to ask the runtime at this socket: a path, which may begin with unix:// as the kubelet has it.
pub fn start(socket: &str, servers: &Handle) -> RuntimeService {
    let socket = socket.strip_prefix("unix://").unwrap_or(socket).to_owned();
    let ((ask, asked), (tell, told)) = (mpsc::channel(64), mpsc::channel(1));
    servers.spawn(answer(Asker { socket, patience: PATIENCE, failing: false }, asked, tell));
    RuntimeService { ask, told }
}

/// Ends when nobody asks any more.
async fn answer(mut asker: Asker, mut asked: mpsc::Receiver<Vec<Arc<str>>>, tell: mpsc::Sender<Vec<FoundContainer>>) {
    let mut open = BTreeSet::new();
    loop {
        let ids = if open.is_empty() {
            asked.recv().await
        } else {
            timeout(RETRY, asked.recv()).await.unwrap_or_else(|_| Some(Vec::new()))
        };
        let Some(ids) = ids else { return };
        open.extend(ids.into_iter().chain(iter::from_fn(|| asked.try_recv().ok()).flatten()));
        while open.len() > OPEN_MAX {
            open.pop_last();
        }
        let ids: Vec<_> = open.iter().cloned().collect();
        if let Some(found) = asker.find(&ids).await {
            open.clear();
            if tell.send(found).await.is_err() {
                return;
            }
        }
    }
}

struct Asker {
    socket: String,
    patience: Duration,
    /// Whether the last question was left without an answer, which has been said.
    failing: bool,
}

impl Asker {
    /// What the runtime knows of these containers; none when it does not answer.
    async fn find(&mut self, ids: &[Arc<str>]) -> Option<Vec<FoundContainer>> {
        let answer = timeout(self.patience, self.ask(ids)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer within {}", show_duration(self.patience))));
        let (socket, was_failing) = (&self.socket, self.failing);
        self.failing = answer.is_err();
        match &answer {
            Ok(_) if was_failing => log::info!("containers.cri: {socket} answers again"),
            Err(error) if !was_failing => {
                log::warn!("containers.cri: {socket}: {error:#}; until it answers, names come from files alone");
            }
            _ => {}
        }
        answer.ok()
    }

    async fn ask(&self, ids: &[Arc<str>]) -> Result<Vec<FoundContainer>> {
        let mut service = self.connect().await?;
        let singly = ids.len() <= ASKED_SINGLY;
        let (mut containers, mut pods) = (HashMap::new(), Vec::new());
        for only in filters(singly, ids.iter().map(|id| &**id)) {
            let list: Containers = list(&mut service, "/runtime.v1.RuntimeService/ListContainers", only).await?;
            containers.extend(list.containers.into_iter().map(|container| (container.id.clone(), container)));
        }
        for only in filters(singly, ids.iter().map(|id| pod_of(id, &containers))) {
            let list: Pods = list(&mut service, "/runtime.v1.RuntimeService/ListPodSandbox", only).await?;
            pods.extend(list.pods);
        }
        Ok(tell(ids, &containers, pods))
    }

    async fn connect(&self) -> Result<Grpc<Channel>> {
        let channel = Endpoint::from_shared(format!("unix://{}", self.socket))?.connect().await?;
        Ok(Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }
}

/// What to ask for: each of these, or everything.
fn filters<'a>(singly: bool, ids: impl Iterator<Item = &'a str>) -> Vec<Option<&'a str>> {
    if singly { ids.collect::<BTreeSet<_>>().into_iter().map(Some).collect() } else { vec![None] }
}

async fn list<Answer: Message + Default + 'static>(
    service: &mut Grpc<Channel>,
    method: &'static str,
    only: Option<&str>,
) -> Result<Answer> {
    let request = ListRequest { filter: only.map(|id| Filter { id: id.to_owned() }) };
    service.ready().await?;
    let method_path = PathAndQuery::from_static(method);
    let answer = service.unary(Request::new(request), method_path, ProstCodec::<ListRequest, Answer>::default());
    Ok(answer.await.context(method)?.into_inner())
}

/// The pod that a container is in, or that it keeps.
fn pod_of<'a>(id: &'a str, containers: &'a HashMap<String, Container>) -> &'a str {
    containers.get(id).map_or(id, |container| &container.pod_id)
}

/// What is told of each of these ids that the runtime knows. The container that keeps a pod is known as the pod alone.
fn tell(ids: &[Arc<str>], containers: &HashMap<String, Container>, pods: Vec<Pod>) -> Vec<FoundContainer> {
    let pods: HashMap<_, _> = pods.into_iter().map(|pod| (pod.id, pod.metadata.unwrap_or_default())).collect();
    let of = |id: &Arc<str>| {
        let container = containers.get(&**id);
        let pod = pods.get(pod_of(id, containers));
        let told = FoundContainer {
            id: Arc::clone(id),
            name: container.and_then(|container| known(&container.metadata.as_ref()?.name)),
            image: container.and_then(|container| container.image.as_ref()?.name()),
            pod: pod.and_then(|pod| known(&pod.name)),
            namespace: pod.and_then(|pod| known(&pod.namespace)),
            pod_uid: pod.and_then(|pod| known(&pod.uid)),
            runtime: None,
        };
        (!told.tells_nothing()).then_some(told)
    };
    ids.iter().filter_map(of).collect()
}

// The messages, as far as they name anything (kubernetes: cri-api, pkg/apis/runtime/v1/api.proto).

/// ListContainersRequest and ListPodSandboxRequest.
#[derive(Clone, PartialEq, Message)]
struct ListRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<Filter>,
}

/// ContainerFilter and PodSandboxFilter.
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(string, tag = "1")]
    id: String,
}

/// ListContainersResponse.
#[derive(Clone, PartialEq, Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    pod_id: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

/// ImageSpec.
#[derive(Clone, PartialEq, Message)]
struct Image {
    /// What the runtime was told, which may be an image's id.
    #[prost(string, tag = "1")]
    image: String,
    /// What the pod's specification says, where the kubelet passes it on.
    #[prost(string, tag = "18")]
    user_specified: String,
}

impl Image {
    fn name(&self) -> Option<String> {
        known(&self.user_specified).or_else(|| known(&self.image))
    }
}

/// ListPodSandboxResponse.
#[derive(Clone, PartialEq, Message)]
struct Pods {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<Pod>,
}

/// PodSandbox.
#[derive(Clone, PartialEq, Message)]
struct Pod {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<PodMetadata>,
}

/// PodSandboxMetadata.
#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::log_lines;
    use std::os::unix::net::UnixListener;

    fn container(id: &str, pod: &str, image: Image) -> Container {
        let metadata = Some(ContainerMetadata { name: format!("name of {id}") });
        Container { id: id.to_owned(), pod_id: pod.to_owned(), metadata, image: Some(image) }
    }

    #[test]
    fn containers_have_the_names_of_their_pods_and_who_is_unknown_is_not_told() {
        let as_told = Image { image: "sha256:9c7a".to_owned(), user_specified: "nginx:1.27".to_owned() };
        let as_before_1_28 = Image { image: "docker.io/library/redis:7".to_owned(), user_specified: String::new() };
        let containers = [container("a", "p", as_told), container("b", "gone", as_before_1_28)];
        let containers = containers.map(|container| (container.id.clone(), container)).into();
        let metadata = PodMetadata { name: "web-0".to_owned(), uid: "6f1d".to_owned(), namespace: "shop".to_owned() };
        let pods = vec![Pod { id: "p".to_owned(), metadata: Some(metadata) }];
        let ids = ["a", "b", "p", "unknown"].map(Arc::from);
        let text = |text: &str| Some(text.to_owned());
        let of_pod = FoundContainer {
            pod: text("web-0"),
            namespace: text("shop"),
            pod_uid: text("6f1d"),
            ..FoundContainer::default()
        };
        let expected = [
            FoundContainer { id: "a".into(), name: text("name of a"), image: text("nginx:1.27"), ..of_pod.clone() },
            FoundContainer {
                id: "b".into(),
                name: text("name of b"),
                image: text("docker.io/library/redis:7"),
                ..FoundContainer::default()
            },
            FoundContainer { id: "p".into(), ..of_pod },
        ];
        assert_eq!(tell(&ids, &containers, pods), expected);
    }

    #[test]
    fn an_image_is_what_the_pods_specification_says_where_that_is_passed_on() {
        // As a runtime writes it: field 1 and field 18, both with a length.
        let image = [&b"\x0a\x0bsha256:9c7a"[..], &b"\x92\x01\x0anginx:1.27"[..]].concat();
        assert_eq!(Image::decode(&image[..]).unwrap().name().as_deref(), Some("nginx:1.27"));
        assert_eq!(Image::decode(&image[..13]).unwrap().name().as_deref(), Some("sha256:9c7a"));
    }

    #[test]
    fn few_are_asked_for_one_by_one_and_each_pod_once() {
        assert_eq!(filters(true, ["b", "a", "b"].into_iter()), [Some("a"), Some("b")]);
        assert_eq!(filters(false, ["b", "a", "b"].into_iter()), [None]);
    }

    #[test]
    fn who_is_not_there_or_hangs_tells_nothing_and_that_is_said_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cri.sock");
        let mut asker =
            Asker { socket: socket.display().to_string(), patience: Duration::from_millis(50), failing: false };
        let mut ask_twice = || {
            asker.failing = false;
            log_lines::during(|| {
                for _ in 0..2 {
                    assert_eq!(runtime.block_on(asker.find(&["a".into()])), None);
                }
            })
        };
        let absent = ask_twice();
        assert!(absent.len() == 1 && absent[0].contains("No such file or directory"), "{absent:?}");
        let listener = UnixListener::bind(&socket).unwrap();
        let hanging = ask_twice();
        assert!(hanging.len() == 1 && hanging[0].contains("no answer within 50ms"), "{hanging:?}");
        drop(listener);
    }
}
