//! What requests mean. One file per request family; it talks to the shards by message only.

mod admin;
mod clients;
mod delay;
pub mod dispatch;
pub mod error;
mod filters;
mod forward;
mod groups;
mod heartbeat;
mod ids;
mod lock;
mod offset;
pub mod options;
mod progress;
mod pull;
mod query;
pub mod registration;
mod reply;
mod send;
mod send_back;
mod send_plan;
mod sent_properties;
mod statistics;
mod subscription;
mod topics;
