//! The simulator backend: one thread, one seed, a disk that loses, tears and reorders what was not flushed.
