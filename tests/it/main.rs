//! Oracle tests: the agent, started as a user starts it, on the running kernel, against what the workloads counted
//! themselves and what the kernel's own books say. One binary, one file per source or part.
//!
//! They need root, and a machine on which loop devices and memory cgroups may be made. Only one runs at a time.

mod address_space;
mod block_io;
mod cgroup;
mod command_line;
mod lifecycle;
mod maps;
mod page_fault;
mod recording;
mod rings;
mod shutdown;
mod snapshot;
mod socket;
#[cfg(feature = "vm")]
mod vm;
