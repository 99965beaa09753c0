//! A decoded command, and one that is to be sent.
//!
//! Incoming: [`Command`] keeps its header as it was read and its fields as ranges in it, so that decoding a send copies
//! nothing but text that JSON had to escape. Outgoing: [`Outgoing`] writes its header into the connection's buffer;
//! the body is gathered by the connection and only its length is needed here.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::wire::remoting::frame::{HEADER_BYTES_MAX, PREFIX_BYTES, mark};
use crate::wire::remoting::json_scan::unescape;
use crate::wire::remoting::{binary_header, code, json_header};

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

/// Ordinal of OTHER in [`LANGUAGES`]; also for languages that we do not know.
pub const LANGUAGE_OTHER: u8 = 7;

/// Bytes of a wrong value that an error quotes.
const QUOTED_BYTES_MAX: usize = 128;
/// Bytes of a remark that are sent. Remarks quote what peers sent, so they need a bound.
const REMARK_BYTES_MAX: usize = 16 << 10;

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

/// Where the fields are whose names are one small letter, as all those of a send are: their index and one, or 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Letters([u8; 26]);

impl Letters {
    /// Of fields in `header`. `None` if the fields have to be looked at one by one.
    pub(super) fn of(header: &[u8], fields: &[Field]) -> Option<Self> {
        let mut letters = Self::default();
        for (at, field) in fields.iter().enumerate() {
            if field.name_escaped {
                return None;
            }
            let (start, end) = (field.name.0 as usize, field.name.1 as usize);
            if let [letter @ b'a'..=b'z'] = header.get(start..end)? {
                letters.0[usize::from(letter - b'a')] = u8::try_from(at + 1).ok()?;
            }
        }
        Some(letters)
    }
}

/// One header field as a range of [`Command::header`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub(super) name: (u32, u32),
    pub(super) value: (u32, u32),
    /// The name has JSON escapes.
    pub(super) name_escaped: bool,
    /// The value has JSON escapes.
    pub(super) value_escaped: bool,
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
    pub(super) letters: Option<Letters>,
    /// Empty if there is none.
    pub body: Bytes,
}

/// Value of an outgoing header field. On the wire all of them are text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    Text(Cow<'static, str>),
    Shared(Arc<str>),
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

impl Command {
    /// Whether this answers a request.
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    /// Whether the peer wants no answer, whatever happens.
    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    /// Bytes of the frame that this was, for budgets.
    pub fn frame_bytes(&self) -> usize {
        PREFIX_BYTES + self.header.len() + self.body.len()
    }

    /// Name of the peer's language.
    pub fn language_name(&self) -> &'static str {
        LANGUAGES
            .get(usize::from(self.language))
            .copied()
            .unwrap_or("OTHER")
    }

    /// A field's bytes without JSON escapes. Of two fields with one name the last counts, as in a Java map.
    #[inline]
    pub fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.find(name).map(|field| self.value_of(field))
    }

    /// A field's bytes as a slice of the header, copied only if JSON had to escape them.
    pub fn shared(&self, name: &str) -> Option<Bytes> {
        let field = self.find(name)?;
        Some(match self.value_of(field) {
            Cow::Borrowed(bytes) => self.header.slice_ref(bytes),
            Cow::Owned(bytes) => bytes.into(),
        })
    }

    /// A field's text. Bytes that are not UTF-8 become U+FFFD, as in Java.
    #[inline]
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.bytes(name).map(lossy)
    }

    /// A text that has to be there.
    #[inline]
    pub fn required_text(&self, name: &'static str) -> Result<Cow<'_, str>, FieldError> {
        self.text(name).ok_or(FieldError::Missing { name })
    }

    /// A field as a 64-bit number.
    #[inline]
    pub fn int(&self, name: &'static str) -> Result<Option<i64>, FieldError> {
        self.parse(name, "a 64-bit integer")
    }

    /// A field as a 32-bit number.
    #[inline]
    pub fn int32(&self, name: &'static str) -> Result<Option<i32>, FieldError> {
        self.parse(name, "a 32-bit integer")
    }

    /// A 64-bit number that has to be there.
    #[inline]
    pub fn required_int(&self, name: &'static str) -> Result<i64, FieldError> {
        self.int(name)?.ok_or(FieldError::Missing { name })
    }

    /// A 32-bit number that has to be there.
    #[inline]
    pub fn required_i32(&self, name: &'static str) -> Result<i32, FieldError> {
        self.int32(name)?.ok_or(FieldError::Missing { name })
    }

    /// Java's `Boolean.parseBoolean`: true for `true` in any case, false for all else and for none.
    #[inline]
    pub fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// The same with a default for a field that is not there.
    #[inline]
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        self.bytes(name)
            .map_or(default, |value| value.eq_ignore_ascii_case(b"true"))
    }

    /// All fields in the order of the header, text as in [`Command::text`]. A name can come twice.
    pub fn fields(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        self.fields
            .iter()
            .map(|field| (lossy(self.name_of(field)), lossy(self.value_of(field))))
    }

    // With the name known, as it is in almost all calls, little is left of this.
    #[inline(always)]
    fn find(&self, name: &str) -> Option<&Field> {
        if let (Some(letters), [letter @ b'a'..=b'z']) = (&self.letters, name.as_bytes()) {
            let at = letters.0[usize::from(letter - b'a')];
            return usize::from(at)
                .checked_sub(1)
                .and_then(|at| self.fields.get(at));
        }
        self.search(name.as_bytes())
    }

    fn search(&self, name: &[u8]) -> Option<&Field> {
        self.fields.iter().rev().find(|field| {
            let (start, end) = (field.name.0 as usize, field.name.1 as usize);
            // Most comparisons end at the first byte.
            if field.name_escaped {
                return *self.name_of(field) == *name;
            }
            end - start == name.len()
                && self.header.get(start) == name.first()
                && (name.len() == 1 || self.header[start..end] == *name)
        })
    }

    fn name_of(&self, field: &Field) -> Cow<'_, [u8]> {
        self.slice(field.name, field.name_escaped)
    }

    fn value_of(&self, field: &Field) -> Cow<'_, [u8]> {
        self.slice(field.value, field.value_escaped)
    }

    fn slice(&self, (start, end): (u32, u32), escaped: bool) -> Cow<'_, [u8]> {
        let bytes = &self.header[start as usize..end as usize];
        if escaped {
            unescape(bytes)
        } else {
            Cow::Borrowed(bytes)
        }
    }

    #[inline]
    fn parse<T: FromStr + TryFrom<i64>>(
        &self,
        name: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, FieldError> {
        let Some(field) = self.find(name) else {
            return Ok(None);
        };
        // Almost all numbers are just digits.
        let plain = &self.header[field.value.0 as usize..field.value.1 as usize];
        if let Some(number) = digits(plain).and_then(|number| T::try_from(number).ok()) {
            return Ok(Some(number));
        }
        self.parse_text(field, name, wanted).map(Some)
    }

    #[cold]
    fn parse_text<T: FromStr>(
        &self,
        field: &Field,
        name: &'static str,
        wanted: &'static str,
    ) -> Result<T, FieldError> {
        let value = lossy(self.value_of(field));
        match value.parse() {
            Ok(number) => Ok(number),
            Err(_) => Err(FieldError::Invalid {
                name,
                value: cut(&value, QUOTED_BYTES_MAX).into(),
                wanted,
            }),
        }
    }
}

/// A number of one to eighteen decimal digits and nothing else, which no 64 bits are too few for.
#[inline]
pub(super) fn digits(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 18 {
        return None;
    }
    text.iter().try_fold(0, |number, &byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + i64::from(byte - b'0'))
    })
}

fn lossy(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(bytes),
        },
        Cow::Owned(bytes) => Cow::Owned(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }),
    }
}

/// At most `bytes_max` bytes of a text, whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

impl Outgoing {
    /// A response with code 0.
    #[inline]
    pub fn success() -> Self {
        Self {
            flag: FLAG_RESPONSE,
            ..Self::default()
        }
    }

    /// A response with another code.
    pub fn error(code: i32, remark: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            flag: FLAG_RESPONSE,
            remark: Some(remark.into()),
            ..Self::default()
        }
    }

    /// A request of ours. Who sends it sets the opaque.
    pub fn request(code: i32) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }

    /// A request of ours that wants no answer.
    pub fn oneway(code: i32) -> Self {
        Self {
            code,
            flag: FLAG_ONEWAY,
            ..Self::default()
        }
    }

    /// With another code, for responses that carry fields in spite of it.
    pub fn with_code(mut self, code: i32) -> Self {
        self.code = code;
        self
    }

    /// With a remark.
    pub fn with_remark(mut self, remark: impl Into<Cow<'static, str>>) -> Self {
        self.remark = Some(remark.into());
        self
    }

    /// With one more header field. A name must be set once only.
    // Inlined, a chain of these is built in place; it was moved at each call.
    #[inline(always)]
    pub fn field(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<FieldValue>,
    ) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// With one more header field if there is a value.
    #[inline(always)]
    pub fn field_if(
        self,
        name: impl Into<Cow<'static, str>>,
        value: Option<impl Into<FieldValue>>,
    ) -> Self {
        match value {
            Some(value) => self.field(name, value),
            None => self,
        }
    }

    /// Appends length, header mark and header of the frame; the caller appends `body_len` bytes of body.
    ///
    /// A header that its 24 bits of length cannot hold becomes an error that says so: it quotes what a peer sent.
    pub fn encode(&self, encoding: Encoding, body_len: usize, out: &mut BytesMut) {
        let start = out.len();
        out.put_bytes(0, PREFIX_BYTES);
        self.encode_header(encoding, out);
        let mut header_bytes = out.len() - start - PREFIX_BYTES;
        if header_bytes > HEADER_BYTES_MAX {
            out.truncate(start + PREFIX_BYTES);
            Self {
                code: code::response::SYSTEM_ERROR,
                flag: self.flag,
                opaque: self.opaque,
                remark: Some(format!("the header would have {header_bytes} bytes").into()),
                fields: SmallVec::new(),
            }
            .encode_header(encoding, out);
            header_bytes = out.len() - start - PREFIX_BYTES;
        }
        put_prefix(&mut out[start..], encoding, header_bytes, body_len);
    }

    /// The whole frame in one piece.
    pub fn frame(&self, encoding: Encoding, body: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(256 + body.len());
        self.encode(encoding, body.len(), &mut out);
        out.extend_from_slice(body);
        out.freeze()
    }

    fn encode_header(&self, encoding: Encoding, out: &mut BytesMut) {
        match &self.remark {
            Some(remark) if remark.len() > REMARK_BYTES_MAX => {
                let mut shorter = self.clone();
                shorter.remark = Some(cut(remark, REMARK_BYTES_MAX).to_owned().into());
                shorter.encode_header(encoding, out);
            }
            _ => match encoding {
                Encoding::Json => json_header::encode(self, out),
                Encoding::Binary => binary_header::encode(self, out),
            },
        }
    }
}

/// Writes length and header mark of a frame to its first bytes, once its header is known.
pub(super) fn put_prefix(
    frame: &mut [u8],
    encoding: Encoding,
    header_bytes: usize,
    body_bytes: usize,
) {
    let frame_bytes = PREFIX_BYTES - 4 + header_bytes + body_bytes;
    assert!(
        frame_bytes <= i32::MAX as usize,
        "what we send is bounded long before"
    );
    frame[..4].copy_from_slice(&(frame_bytes as u32).to_be_bytes());
    frame[4..8].copy_from_slice(&mark(encoding, header_bytes).to_be_bytes());
}

impl From<&'static str> for FieldValue {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for FieldValue {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<Cow<'static, str>> for FieldValue {
    fn from(text: Cow<'static, str>) -> Self {
        Self::Text(text)
    }
}

impl From<Arc<str>> for FieldValue {
    fn from(text: Arc<str>) -> Self {
        Self::Shared(text)
    }
}

impl From<bool> for FieldValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for FieldValue {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<i32> for FieldValue {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}

impl From<u32> for FieldValue {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}
