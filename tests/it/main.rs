//! Oracle tests: the agent, started as a user starts it, on the running kernel, against what the workloads counted
//! themselves and what the kernel's own books say. One binary, one file per source or part.
//!
//! They need root, and a machine on which loop devices and memory cgroups may be made and the kernel's log be read (/dev/kmsg). Only
//! one runs at a time.

mod address_space;
mod advice;
// A real Alertmanager, and a mail server in Python.
#[cfg(not(feature = "vm"))]
mod alerts;
mod block_io;
// Real servers, in Python.
#[cfg(not(feature = "vm"))]
mod budget;
mod cgroup;
mod command_line;
mod container;
#[cfg(not(feature = "vm"))]
mod deploy;
mod descriptors;
// Workloads in Python.
#[cfg(not(feature = "vm"))]
mod exec;
// A statically linked agent loads no driver.
#[cfg(not(feature = "vm"))]
mod gpu;
// Real servers, in Python.
#[cfg(not(feature = "vm"))]
mod leaks;
mod lifecycle;
mod marks;
mod maps;
// A real Prometheus.
#[cfg(not(feature = "vm"))]
mod metrics;
mod oom;
mod page_fault;
// Real servers, and readers that are not ours.
#[cfg(not(feature = "vm"))]
mod parity;
#[cfg(not(feature = "vm"))]
mod privileges;
mod recording;
mod requests;
mod resident;
mod resources;
mod rings;
#[cfg(not(feature = "vm"))]
mod service;
mod shutdown;
mod snapshot;
mod socket;
#[cfg(not(feature = "vm"))]
mod timeseries;
// Perl, which writes titles.
#[cfg(not(feature = "vm"))]
mod trees;
mod usage;
mod vanish;
#[cfg(feature = "vm")]
mod vm;
mod workload_socket;
