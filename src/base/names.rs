//! Names of topics and groups by RocketMQ's rules (`TopicValidator`, `MixAll`), checked at every entrance.
