//! Source `requests`: its maps. What is known of each socket stays in the kernel, with the socket.

use crate::kernel::{
    attach::{Attached, LoadError},
    request_accounts::RequestAccounts,
};
use monitor_common::{Owner, requests::Totals};
use std::io;

/// Its maps.
pub struct Requests {
    accounts: RequestAccounts,
}

impl Requests {
    /// Opens the maps of an attached source.
    pub fn open(attached: &mut Attached) -> Result<Self, LoadError> {
        let [accounts, keys, free] = ["ACCOUNTS", "KEYS", "FREE"].map(|name| attached.take_map(name));
        Ok(Self { accounts: RequestAccounts::new(accounts?, keys?, free?)? })
    }

    /// Totals of every owner that served anything.
    pub fn read(&mut self) -> Vec<(Owner, Totals)> {
        self.accounts.read()
    }

    /// Deletes harvested owners.
    pub fn forget(&mut self, owners: &[Owner]) -> io::Result<()> {
        self.accounts.close(owners)
    }
}
