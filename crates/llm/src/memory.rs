//! Memory of this process and of the machine, as the operating system reports it.

/// Memory of this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Anonymous memory (`RssAnon`), which no file backs: what a model really costs.
    pub anonymous: u64,
    /// Resident memory (`VmRSS`), pages of mapped files included.
    pub resident: u64,
}

impl MemoryUse {
    /// The current values; `None` on systems other than Linux.
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let kilobytes = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            anonymous: 1024 * kilobytes("RssAnon:")?,
            resident: 1024 * kilobytes("VmRSS:")?,
        })
    }

    /// The larger of the two in each field.
    pub fn max(self, other: Self) -> Self {
        Self {
            anonymous: self.anonymous.max(other.anonymous),
            resident: self.resident.max(other.resident),
        }
    }
}

/// Bytes that this process can still allocate: what the system has left, or the container's limit
/// (cgroup v2), whichever is less. `None` where the system does not report it.
pub(crate) fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = available_of(&read("/proc/meminfo")?)?;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    Some(limit.map_or(system, |(most, now)| system.min(most.saturating_sub(now))))
}

fn available_of(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_parsed() {
        assert_eq!(
            available_of("MemTotal: 9 kB\nMemAvailable:     200 kB\n"),
            Some(204_800)
        );
        assert_eq!(available_of("MemTotal: 9 kB"), None);
        assert!(available().is_none_or(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn proc_status_is_parsed() {
        let status =
            "VmHWM:\t  9 kB\nVmRSS:\t     200 kB\nRssAnon:\t     120 kB\nRssFile:\t 80 kB\n";
        assert_eq!(
            MemoryUse::parse(status),
            Some(MemoryUse {
                anonymous: 122_880,
                resident: 204_800
            })
        );

        assert_eq!(MemoryUse::parse("nothing"), None);
    }
}
