//! What only virtual machines show: other kernels, other kinds of hosts, slow disks. `cargo xtask vm` runs these.

mod alerts;
mod churn;
mod crippled;
mod expected;
mod io;
mod kernel;
mod rungs;
mod swap;

pub(crate) use expected::Expected;
