//! Resource limits of the process: locked memory for io_uring, descriptors for connections.
//!
//! Each executor registers about 10 MiB on three rings, and the registration fails silently where the limit on locked
//! memory is below that (8 MiB is what systemd gives by default).

use std::io;

/// Raises the limit on locked memory as far as this process may; returns the limit in bytes (`u64::MAX`: none).
pub fn raise_locked_memory() -> io::Result<u64> {
    raise(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY)
}

/// Raises the limit on open files to the hard limit; returns the limit.
pub fn raise_open_files() -> io::Result<u64> {
    raise(libc::RLIMIT_NOFILE, 0)
}

/// Sets soft and hard limit to `wanted` if that is more than the hard limit and allowed, else soft to hard.
fn raise(resource: libc::__rlimit_resource_t, wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live struct of the type that the call fills.
    if unsafe { libc::getrlimit(resource, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let all = libc::rlimit {
        rlim_cur: wanted.max(limit.rlim_max),
        rlim_max: wanted.max(limit.rlim_max),
    };
    // SAFETY: the call only reads `all`.
    if unsafe { libc::setrlimit(resource, &all) } == 0 {
        return Ok(all.rlim_cur);
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call only reads `limit`.
    if unsafe { libc::setrlimit(resource, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}
