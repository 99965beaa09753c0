//! Ports for nodes of tests. Two tests that look for a free port at the same time must not find the same one: the
//! brokers listen with SO_REUSEPORT, so each would serve some of the other's clients.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// A block of ports: name server, and broker with its fast port two below and its replication port one above.
const BLOCK: u32 = 8;

/// Blocks that this process holds until it ends.
static HELD: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port for the name server, and one for the broker whose neighbours are free too. Outside the range from which the
/// kernel takes ports of outgoing connections; nobody else who asks here gets them while this process lives.
pub fn free_ports() -> (u16, u16) {
    const FIRST: u32 = 12_000;
    const SPAN: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(u32::MAX);
    let seed = process::id().wrapping_mul(104_729) % (SPAN / BLOCK) * BLOCK;
    let _ = NEXT.compare_exchange(u32::MAX, seed, Ordering::Relaxed, Ordering::Relaxed);
    for _ in 0..SPAN / BLOCK {
        let base = (FIRST + NEXT.fetch_add(BLOCK, Ordering::Relaxed) % SPAN) as u16;
        let name = UnixAddr::from_abstract_name(format!("ringmq-test/{base}")).unwrap();
        let Ok(held) = UnixListener::bind_addr(&name) else {
            continue;
        };
        let free = |port: u16| {
            // The names with which a broker guards its ports come last: it may not listen yet.
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let guard = UnixAddr::from_abstract_name(format!("ringmq/{address}")).unwrap();
            TcpListener::bind(address).is_ok() && UnixListener::bind_addr(&guard).is_ok()
        };
        if (base..base + 6).all(free) {
            HELD.lock().unwrap().push(held);
            return (base, base + 3); // the broker's: base + 1, base + 3, base + 4
        }
    }
    panic!("no free ports");
}
