//! Limits that a process sets for itself.

use std::process::ExitStatus;

/// Most that a process may take for what it is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory of its own.
    pub memory_bytes: u64,
    /// Seconds of a core, for each call.
    pub cpu_seconds: u64,
}

impl Limits {
    /// What a file of this size may take, however it is written: 320 MiB and 16 times its size; 6 seconds, and one
    /// more for every 16 MiB.
    ///
    /// A file that means well needs some multiple of its size, since it is decompressed; one that does not needs
    /// gigabytes for a few hundred bytes.
    pub fn of_file(size_bytes: u64) -> Self {
        Self {
            memory_bytes: size_bytes.saturating_mul(16).saturating_add(320 << 20),
            cpu_seconds: 6 + (size_bytes >> 24),
        }
    }
}

/// Sets a limit of this process, never above what it was started with. Where the system has no such limit, nothing
/// happens.
#[cfg(unix)]
fn set(resource: Resource, most: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the type that the call fills in.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return;
    }
    limit.rlim_cur = libc::rlim_t::try_from(most)
        .unwrap_or(limit.rlim_max)
        .min(limit.rlim_max);
    // SAFETY: the pointer is to a live value, which the call only reads.
    let _ = unsafe { libc::setrlimit(resource, &raw const limit) };
}

#[cfg(all(unix, target_os = "linux", target_env = "gnu"))]
type Resource = libc::__rlimit_resource_t;
#[cfg(all(unix, not(all(target_os = "linux", target_env = "gnu"))))]
type Resource = libc::c_int;

/// Limits the memory of this process from now on. What is over the limit fails to be allocated.
pub(super) fn limit_memory(bytes: u64) {
    #[cfg(unix)]
    {
        // Memory that is reserved, but can't be written to, counts towards the second alone.
        set(libc::RLIMIT_DATA, bytes);
        set(libc::RLIMIT_AS, bytes.saturating_add(4 << 30));
    }
    #[cfg(not(unix))]
    let _ = bytes;
}

/// Ends this process once it has used the processor for so many seconds more.
pub(super) fn limit_cpu(seconds: u64) {
    #[cfg(unix)]
    {
        let mut used = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the pointer is to a value of the type that the call fills in.
        let failed = unsafe { libc::getrusage(libc::RUSAGE_SELF, used.as_mut_ptr()) } != 0;
        // SAFETY: all zeros are a value of this type, which has nothing but integers.
        let used = unsafe { used.assume_init() };
        if failed {
            return;
        }
        let so_far = used.ru_utime.tv_sec + used.ru_stime.tv_sec + 1;
        set(
            libc::RLIMIT_CPU,
            seconds.saturating_add(u64::try_from(so_far).unwrap_or(0)),
        );
    }
    #[cfg(not(unix))]
    let _ = seconds;
}

/// Leaves no core file behind when this process aborts.
pub(super) fn leave_no_core() {
    #[cfg(unix)]
    set(libc::RLIMIT_CORE, 0);
}

/// Returns whether a process was ended by [`limit_cpu`].
pub(super) fn is_out_of_time(status: ExitStatus) -> bool {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGXCPU);
    #[cfg(not(unix))]
    return status.code() == Some(i32::MIN);
}

/// Returns whether somebody else ended a process: a user, a batch system, the system that is out of memory.
pub(super) fn is_killed(status: ExitStatus) -> bool {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::signal(&status).is_some_and(|signal| {
        [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP].contains(&signal)
    });
    #[cfg(not(unix))]
    return status.code().is_none();
}
