//! The leaf layer: numbers, names, limits and configuration. It names no other layer.

pub mod bell;
pub mod civil;
pub mod config;
pub mod doubt;
pub mod histogram;
pub mod id;
pub mod id_set;
pub mod limits;
pub mod names;
pub mod notify;
pub mod offset;
pub mod planted;
