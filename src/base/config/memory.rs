//! One memory budget and its shares: a pure function, so that the figures can be shown and tested.

/// Returned O_DIRECT buffers that each executor keeps for the next writes and reads.
pub const IO_BYTES_PER_SHARD: u64 = 2 << 20;
/// The least that one shard can work with.
pub const SHARD_BYTES_MIN: u64 = 24 << 20;
/// What the default takes at most, however large the machine.
pub const DEFAULT_BYTES_MAX: u64 = 1 << 30;
/// The same for a process that shares its machine with its clients.
pub const STANDALONE_BYTES_MAX: u64 = 256 << 20;

/// Shares of one shard in bytes. Their sum times the shards never exceeds the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryShares {
    /// Returned buffers that wait for their next use.
    pub io_bytes: u64,
    /// The newest bytes of the shard's logs, from which consumers that keep up are served.
    pub tail_cache_bytes: u64,
    /// What was read from the disk for consumers that are behind.
    pub read_cache_bytes: u64,
    /// Queue index and key index blocks.
    pub index_bytes: u64,
    /// Requests and answers of all connections that wait.
    pub connection_bytes: u64,
}

/// The default budget, at most `most_bytes`, from the memory that the process may use.
pub fn default_budget(machine_bytes: Option<u64>, most_bytes: u64, shards: usize) -> u64 {
    let least = SHARD_BYTES_MIN * shards.max(1) as u64;
    machine_bytes
        .map_or(most_bytes, |bytes| (bytes / 4).min(most_bytes))
        .max(least)
}

/// Divides a budget. `Err` is the least budget for so many shards.
pub fn split(budget_bytes: u64, shards: usize) -> Result<MemoryShares, u64> {
    let shards = shards.max(1) as u64;
    let per_shard = budget_bytes / shards;
    if per_shard < SHARD_BYTES_MIN {
        return Err(SHARD_BYTES_MIN * shards);
    }
    // Two fifths for the tail, since a consumer that is served from it costs no read at all; the rest in equal parts.
    let rest = per_shard - IO_BYTES_PER_SHARD;
    let fifth = rest / 5;
    Ok(MemoryShares {
        io_bytes: IO_BYTES_PER_SHARD,
        tail_cache_bytes: 2 * fifth,
        read_cache_bytes: fifth,
        index_bytes: fifth,
        connection_bytes: fifth,
    })
}

const _: () = assert!(SHARD_BYTES_MIN > IO_BYTES_PER_SHARD);

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_is_a_quarter_with_a_bound_on_both_sides() {
        assert_eq!(
            default_budget(Some(2 << 30), DEFAULT_BYTES_MAX, 2),
            512 << 20
        );
        assert_eq!(
            default_budget(Some(64 << 30), DEFAULT_BYTES_MAX, 2),
            DEFAULT_BYTES_MAX
        );
        assert_eq!(
            default_budget(None, DEFAULT_BYTES_MAX, 2),
            DEFAULT_BYTES_MAX
        );
        assert_eq!(
            default_budget(Some(64 << 20), DEFAULT_BYTES_MAX, 2),
            2 * SHARD_BYTES_MIN
        );
        assert_eq!(
            default_budget(Some(64 << 30), DEFAULT_BYTES_MAX, 100),
            100 * SHARD_BYTES_MIN
        );
    }

    #[test]
    fn too_little_memory_names_what_is_needed() {
        assert_eq!(split(100 << 20, 5), Err(5 * SHARD_BYTES_MIN));
        assert!(split(5 * SHARD_BYTES_MIN, 5).is_ok());
    }

    proptest! {
        #[test]
        fn the_shares_never_exceed_the_budget_and_use_almost_all(budget in any::<u64>(), shards in 0usize..200) {
            match split(budget, shards) {
                Ok(shares) => {
                    let shards = shards.max(1) as u64;
                    let sum = shares.io_bytes + shares.tail_cache_bytes + shares.read_cache_bytes
                        + shares.index_bytes + shares.connection_bytes;
                    prop_assert!(sum.checked_mul(shards).unwrap() <= budget);
                    prop_assert!(budget - sum * shards < 6 * shards);
                    prop_assert!(shares.tail_cache_bytes >= shares.read_cache_bytes);
                }
                Err(least) => prop_assert!(budget < least && split(least, shards).is_ok()),
            }
        }

        #[test]
        fn the_default_is_always_enough(machine in any::<Option<u64>>(), shards in 0usize..200) {
            prop_assert!(split(default_budget(machine, DEFAULT_BYTES_MAX, shards), shards).is_ok());
        }
    }
}
