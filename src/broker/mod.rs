//! What requests mean. One file per request family; it talks to the shards by message only.

pub mod clients;
pub mod ids;
pub mod names;
pub mod subscription;
