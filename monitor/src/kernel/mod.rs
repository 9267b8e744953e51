//! The only folder that knows aya and the bpf system call: what the kernel offers (`support`), what to do with that
//! (`plan`, pure), doing it (`attach`), and reading what the programs count (`map`, `slots`, `accounts`, `request_accounts`, `ring`).

pub mod accounts;
pub mod attach;
pub mod btf;
pub mod layout;
pub mod map;
pub mod objects;
pub mod plan;
pub mod program;
pub mod request_accounts;
pub mod ring;
pub mod self_check;
pub mod signature;
pub mod slots;
pub mod support;
pub mod syscall;
pub mod table;
pub mod tracefs;
