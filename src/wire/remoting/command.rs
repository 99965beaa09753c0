//! A decoded command, and one that is to be sent.
//!
//! Incoming: [`Command`] keeps its header as it was read and its fields as ranges in it, so that decoding a send copies
//! nothing but text that JSON had to escape. Outgoing: [`Outgoing`] writes its header into the connection's buffer;
//! the body is gathered by the connection and only its length is needed here.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::SmallVec;

/// How a header is written (the high byte of the frame's header mark).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json = 0,
    /// RocketMQ's binary header (`RocketMQSerializable`). Its code is a signed 16-bit number.
    Binary = 1,
}

/// Flag bit 0: this is a response.
pub const FLAG_RESPONSE: i32 = 1;
/// Flag bit 1: the peer does not want a response.
pub const FLAG_ONEWAY: i32 = 2;
/// The `version` that we send: ordinal of `MQVersion.V5_5_0`. Clients refuse SQL filters below 232.
pub const VERSION: i32 = 513;

/// `LanguageCode` by ordinal.
pub const LANGUAGES: [&str; 14] = [
    "JAVA", "CPP", "DOTNET", "PYTHON", "DELPHI", "ERLANG", "RUBY", "OTHER", "HTTP", "GO", "PHP",
    "OMS", "RUST", "NODE_JS",
];

/// A header that says something impossible; the connection answers code 1 (SYSTEM_ERROR) with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("the header lacks the field '{name}'")]
    Missing { name: &'static str },
    #[error("the header field '{name}' is '{value}', which is not {wanted}")]
    Invalid {
        name: &'static str,
        value: String,
        wanted: &'static str,
    },
}

/// One header field as a range of [`Command::header`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub(super) name: (u32, u32),
    pub(super) value: (u32, u32),
    /// The name or the value has JSON escapes.
    pub(super) escaped: bool,
}

/// A request or response as it was received.
#[derive(Clone, Debug)]
pub struct Command {
    pub encoding: Encoding,
    /// Request or response code. A code above 32,767 arrives wrapped in a binary header; that is RocketMQ's own bug.
    pub code: i32,
    /// Ordinal of `LanguageCode`; 7 (OTHER) if the name is unknown.
    pub language: u8,
    /// Ordinal of `MQVersion`.
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    pub remark: Option<String>,
    /// The header's bytes, which `fields` point into.
    pub header: Bytes,
    pub fields: SmallVec<[Field; 20]>,
    /// Empty if there is none.
    pub body: Bytes,
}

/// Value of an outgoing header field. On the wire all of them are text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    Text(Cow<'static, str>),
    Shared(std::sync::Arc<str>),
    Int(i64),
    Bool(bool),
}

/// A response, or a request of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    pub code: i32,
    pub flag: i32,
    pub opaque: i32,
    pub remark: Option<Cow<'static, str>>,
    pub fields: SmallVec<[(Cow<'static, str>, FieldValue); 8]>,
}
