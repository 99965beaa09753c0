//! Configuration: RocketMQ's keys with defaults, units and bounds; an unknown key is an error that names the nearest.
