//! What the integration tests stand on: the agent as a black box, workloads that know what they did, and the kernel's
//! own books to compare with.
//!
//! Nothing here knows the agent's code: it is started as a program and asked through its socket. The tests themselves
//! are in `it/`, one file per source; what they make the kernel do is in `src/bin/workload`.
//!
//! Nothing is skipped silently: where the machine lacks what a test needs, the test fails and says what is missing.

pub mod agent;
pub mod alertmanager;
pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod container;
#[cfg(feature = "cri")]
pub mod containerd;
pub mod disk;
pub mod expect;
pub mod http;
pub mod json;
pub mod machine;
pub mod opened;
pub mod proc;
pub mod receiver;
pub mod server;
pub mod workload;

pub use agent::Agent;
pub use alertmanager::Alertmanager;
pub use cgroup::Cgroup;
pub use container::{Podman, Runc};
#[cfg(feature = "cri")]
pub use containerd::Containerd;
pub use disk::LoopDevice;
pub use machine::Machine;
pub use opened::Opened;
pub use receiver::Receiver;
pub use server::Server;
pub use workload::Workload;
