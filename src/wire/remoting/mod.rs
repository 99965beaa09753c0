//! RocketMQ's remoting protocol: frames, headers in both encodings, codes and the JSON dialect of its bodies.
//!
//! Source of all facts: `remoting/.../protocol/RemotingCommand`, `RocketMQSerializable`, `netty/NettyDecoder`.

mod binary_header;
pub mod body;
#[cfg(test)]
mod body_tests;
pub mod code;
pub mod command;
pub mod controller;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod json;
mod json_header;
mod json_scan;
pub mod register;
pub mod shape;
pub mod stored;
