//! The machine as /proc shows it: processors, memory, load, pressure, disks, network interfaces.

use super::{
    files::{Buffer, each_pair},
    node::Polled,
    pressure,
};
use crate::reading::{CpuTimes, DiskReading, HostMemory, HostReading, InterfaceReading, Pressures};
use std::path::Path;

/// Nanoseconds to a tick of /proc/stat (USER_HZ).
const TICK_NS: u64 = crate::ids::TICK_NS;
/// Bytes to a sector of /proc/diskstats, whatever the disk's own are.
const SECTOR: u64 = 512;

/// Reads the machine.
#[derive(Debug, Default)]
pub struct Host {
    buffer: Buffer,
}

impl Host {
    /// Processors with load; memory; disks and interfaces; pressure of each. What cannot be read is left out.
    pub fn read(&mut self, polled: Polled) -> HostReading {
        let mut host = HostReading::default();
        if polled.cpu {
            self.read_cpu(&mut host);
        }
        if polled.memory {
            host.memory = self.buffer.read(Path::new("/proc/meminfo")).ok().map(parse_memory);
        }
        if polled.io {
            self.read_io(&mut host);
        }
        let mut pressure = |is_polled: bool, name: &str| {
            is_polled.then(|| pressure::of(self.buffer.read(&Path::new("/proc/pressure").join(name)))).flatten()
        };
        host.pressure = Pressures {
            cpu: pressure(polled.cpu, "cpu"),
            memory: pressure(polled.memory, "memory"),
            io: pressure(polled.io, "io"),
        };
        host
    }

    fn read_cpu(&mut self, host: &mut HostReading) {
        if let Ok(text) = self.buffer.read(Path::new("/proc/stat")) {
            (host.cpu, host.cpus) = parse_cpus(text);
        }
        host.load = self.buffer.read(Path::new("/proc/loadavg")).ok().and_then(parse_load);
    }

    fn read_io(&mut self, host: &mut HostReading) {
        if let Ok(text) = self.buffer.read(Path::new("/proc/diskstats")) {
            host.disks = text.lines().filter_map(parse_disk).collect();
        }
        if let Ok(text) = self.buffer.read(Path::new("/proc/net/dev")) {
            host.interfaces = text.lines().filter_map(parse_interface).collect();
        }
    }
}

/// `cpu0 user nice system idle iowait irq softirq steal guest guest_nice`, in ticks; the first line sums all up.
fn parse_cpus(text: &str) -> (CpuTimes, Vec<(u32, CpuTimes)>) {
    let (mut all, mut each) = (CpuTimes::default(), Vec::new());
    for line in text.lines().map_while(|line| line.strip_prefix("cpu")) {
        let mut fields = line.split_whitespace();
        let number = if line.starts_with(' ') { None } else { fields.next().and_then(|number| number.parse().ok()) };
        let mut next = || fields.next().and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or_default() * TICK_NS;
        // In the order of the fields.
        let times = CpuTimes {
            user_ns: next(),
            nice_ns: next(),
            system_ns: next(),
            idle_ns: next(),
            iowait_ns: next(),
            irq_ns: next(),
            softirq_ns: next(),
            steal_ns: next(),
        };
        match number {
            Some(number) => each.push((number, times)),
            None => all = times,
        }
    }
    (all, each)
}

fn parse_load(text: &str) -> Option<[f64; 3]> {
    let mut fields = text.split(' ').map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??])
}

/// `MemTotal:  16384 kB`.
fn parse_memory(text: &str) -> HostMemory {
    let mut memory = HostMemory::default();
    for line in text.lines() {
        each_pair(line.trim_end_matches(" kB"), |name, kib| {
            let place = match name {
                "MemTotal:" => &mut memory.total_bytes,
                "MemFree:" => &mut memory.free_bytes,
                "MemAvailable:" => &mut memory.available_bytes,
                "Buffers:" => &mut memory.buffers_bytes,
                "Cached:" => &mut memory.cached_bytes,
                "Shmem:" => &mut memory.shmem_bytes,
                "Slab:" => &mut memory.slab_bytes,
                "Dirty:" => &mut memory.dirty_bytes,
                "AnonPages:" => &mut memory.anon_bytes,
                "SwapTotal:" => &mut memory.swap_total_bytes,
                "SwapFree:" => &mut memory.swap_free_bytes,
                _ => return,
            };
            *place = kib * 1024;
        });
    }
    memory
}

/// `major minor name reads merged sectors ms writes merged sectors ms in_flight busy_ms weighted_ms …`. Disks that never did
/// anything, and partitions (whose I/O is their disk's), are left out.
fn parse_disk(line: &str) -> Option<DiskReading> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let name = *fields.get(2)?;
    let number = |place: usize| fields.get(place).and_then(|field| field.parse::<u64>().ok());
    let disk = DiskReading {
        name: name.to_owned(),
        read_ops: number(3)?,
        read_bytes: number(5)? * SECTOR,
        write_ops: number(7)?,
        write_bytes: number(9)? * SECTOR,
        in_flight: number(11)?,
        busy_ns: number(12)? * 1_000_000,
        wait_ns: number(13)? * 1_000_000,
    };
    let moved = disk.read_ops + disk.write_ops + disk.in_flight > 0;
    (moved && Path::new("/sys/block").join(name.replace('/', "!")).exists()).then_some(disk)
}

/// `name: bytes packets errs drop fifo frame compressed multicast | bytes packets errs drop …`.
fn parse_interface(line: &str) -> Option<InterfaceReading> {
    let (name, fields) = line.split_once(':')?;
    let fields: Vec<u64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    Some(InterfaceReading {
        name: name.trim().to_owned(),
        received_bytes: *fields.first()?,
        received_packets: *fields.get(1)?,
        received_bad: fields.get(2)? + fields.get(3)?,
        sent_bytes: *fields.get(8)?,
        sent_packets: *fields.get(9)?,
        sent_bad: fields.get(10)? + fields.get(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_by_number_and_all_together() {
        let (all, each) =
            parse_cpus("cpu  3 0 2 1 4 0 0 5 0 0\ncpu0 1 0 2 0 0 0 0 0 0 0\ncpu3 2 0 0 1 4 0 0 5\nintr 1\n");
        assert_eq!((all.user_ns, all.iowait_ns, all.steal_ns), (3 * TICK_NS, 4 * TICK_NS, 5 * TICK_NS));
        assert_eq!(each.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(each[1].1.idle_ns, TICK_NS);
    }

    #[test]
    fn memory_is_in_bytes_and_what_is_not_told_is_zero() {
        let memory = parse_memory("MemTotal:       16384 kB\nSwapFree:  1 kB\nHugePages_Total:  7\n");
        assert_eq!((memory.total_bytes, memory.swap_free_bytes, memory.free_bytes), (16 << 20, 1024, 0));
    }

    #[test]
    fn interfaces_are_read_and_headings_are_not() {
        let line = " lo: 10 1 2 3 0 0 0 0 20 4 5 6 0 0 0 0";
        let lo = parse_interface(line).unwrap();
        assert_eq!((lo.name.as_str(), lo.received_bytes, lo.received_bad), ("lo", 10, 5));
        assert_eq!((lo.sent_bytes, lo.sent_packets, lo.sent_bad), (20, 4, 11));
        assert_eq!(parse_interface("Inter-|   Receive"), None);
        assert_eq!(parse_interface(" face |bytes: packets"), None);
    }

    #[test]
    fn this_machine_is_read() {
        let all = Polled { cpu: true, memory: true, io: true };
        let host = Host::default().read(all);
        assert!(host.memory.unwrap().total_bytes > 0 && !host.cpus.is_empty() && host.load.is_some());
        assert!(host.interfaces.iter().any(|interface| interface.name == "lo"));
        let read = |polled| {
            let host = Host::default().read(polled);
            (!host.cpus.is_empty() || host.load.is_some(), host.memory.is_some(), !host.interfaces.is_empty())
        };
        assert_eq!(read(Polled { cpu: false, ..all }), (false, true, true));
        assert_eq!(read(Polled { memory: false, ..all }), (true, false, true));
        assert_eq!(read(Polled { io: false, ..all }), (true, true, false));
    }
}
