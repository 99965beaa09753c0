//! What requests mean. One file per request family; it talks to the shards by message only.

pub mod registration;
