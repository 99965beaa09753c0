//! A serde serializer for fastjson's dialect, with standard JSON as its other mode.
//!
//! A map's key is written like any value, which gives integers without quotes and objects in place; the standard mode
//! puts quotes around what is not a string. Nothing can fail: what JSON cannot say (NaN, bytes) has a defined form.

use std::fmt::Display;
use std::io::Write;

use serde::ser::{self, Serialize};

use crate::wire::remoting::json_scan::write_string;

pub fn write<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    run(value, false)
}

pub fn write_standard<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    run(value, true)
}

fn run<T: Serialize + ?Sized>(value: &T, standard: bool) -> Vec<u8> {
    let mut writer = Writer {
        out: Vec::new(),
        standard,
    };
    match value.serialize(&mut writer) {
        Ok(()) => writer.out,
        // Only a type whose own Serialize gives up comes here; none in `body` does.
        Err(Refused(reason)) => panic!("a body of ours cannot be written: {reason}"),
    }
}

/// What a type's own `Serialize` may say.
#[derive(Debug)]
struct Refused(String);

impl Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

impl ser::Error for Refused {
    fn custom<T: Display>(reason: T) -> Self {
        Self(reason.to_string())
    }
}

struct Writer {
    out: Vec<u8>,
    standard: bool,
}

impl Writer {
    fn put(&mut self, value: impl Display) -> Result<(), Refused> {
        // Writing to a vector cannot fail.
        let _ = write!(self.out, "{value}");
        Ok(())
    }

    fn open(&mut self, bracket: u8) {
        self.out.push(bracket);
    }

    /// A comma, unless this is the first element.
    fn separate(&mut self) {
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.out.push(b',');
        }
    }

    fn key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        let start = self.out.len();
        key.serialize(&mut *self)?;
        if self.standard && self.out.get(start) != Some(&b'"') {
            let text = self.out.split_off(start);
            write_string(&String::from_utf8_lossy(&text), &mut self.out);
        }
        self.out.push(b':');
        Ok(())
    }

    /// The value of a member that began at `start`; a null takes the member back.
    fn member<T: Serialize + ?Sized>(&mut self, start: usize, value: &T) -> Result<(), Refused> {
        let value_at = self.out.len();
        value.serialize(&mut *self)?;
        if &self.out[value_at..] == b"null" {
            self.out.truncate(start);
        }
        Ok(())
    }
}

/// An object, or an array if `close` says so.
struct Compound<'a> {
    writer: &'a mut Writer,
    close: &'static str,
    member_at: usize,
}

impl Compound<'_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.writer.separate();
        value.serialize(&mut *self.writer)
    }

    fn named<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        let start = self.writer.out.len();
        self.writer.separate();
        self.writer.key(name)?;
        self.writer.member(start, value)
    }

    fn close(self) -> Result<(), Refused> {
        self.writer.put(self.close)
    }
}

impl<'a> ser::Serializer for &'a mut Writer {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Compound<'a>;
    type SerializeTuple = Compound<'a>;
    type SerializeTupleStruct = Compound<'a>;
    type SerializeTupleVariant = Compound<'a>;
    type SerializeMap = Compound<'a>;
    type SerializeStruct = Compound<'a>;
    type SerializeStructVariant = Compound<'a>;

    fn serialize_bool(self, value: bool) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_i8(self, value: i8) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_i16(self, value: i16) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_i32(self, value: i32) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_i64(self, value: i64) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_u8(self, value: u8) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_u16(self, value: u16) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_u32(self, value: u32) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_u64(self, value: u64) -> Result<(), Refused> {
        self.put(value)
    }

    fn serialize_f32(self, value: f32) -> Result<(), Refused> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Refused> {
        if value.is_finite() {
            self.put(format_args!("{value:?}"))
        } else {
            self.serialize_unit()
        }
    }

    fn serialize_char(self, value: char) -> Result<(), Refused> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        write_string(value, &mut self.out);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        value.serialize(self)
    }

    fn serialize_none(self) -> Result<(), Refused> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Refused> {
        self.put("null")
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refused> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Refused> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.open(b'{');
        self.key(variant)?;
        value.serialize(&mut *self)?;
        self.put('}')
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Compound<'a>, Refused> {
        self.open(b'[');
        Ok(Compound {
            writer: self,
            close: "]",
            member_at: 0,
        })
    }

    fn serialize_tuple(self, _: usize) -> Result<Compound<'a>, Refused> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<'a>, Refused> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Refused> {
        self.open(b'{');
        self.key(variant)?;
        self.open(b'[');
        Ok(Compound {
            writer: self,
            close: "]}",
            member_at: 0,
        })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Compound<'a>, Refused> {
        self.open(b'{');
        Ok(Compound {
            writer: self,
            close: "}",
            member_at: 0,
        })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Compound<'a>, Refused> {
        self.serialize_map(None)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'a>, Refused> {
        self.open(b'{');
        self.key(variant)?;
        self.open(b'{');
        Ok(Compound {
            writer: self,
            close: "}}",
            member_at: 0,
        })
    }
}

impl ser::SerializeSeq for Compound<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.element(value)
    }

    fn end(self) -> Result<(), Refused> {
        self.close()
    }
}

impl ser::SerializeTuple for Compound<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.element(value)
    }

    fn end(self) -> Result<(), Refused> {
        self.close()
    }
}

impl ser::SerializeTupleStruct for Compound<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.element(value)
    }

    fn end(self) -> Result<(), Refused> {
        self.close()
    }
}

impl ser::SerializeTupleVariant for Compound<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.element(value)
    }

    fn end(self) -> Result<(), Refused> {
        self.close()
    }
}

impl ser::SerializeMap for Compound<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        self.member_at = self.writer.out.len();
        self.writer.separate();
        self.writer.key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.writer.member(self.member_at, value)
    }

    fn end(self) -> Result<(), Refused> {
        self.close()
    }
}

impl ser::SerializeStruct for Compound<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.named(name, value)
    }

    fn end(self) -> Result<(), Refused> {
        self.close()
    }
}

impl ser::SerializeStructVariant for Compound<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.named(name, value)
    }

    fn end(self) -> Result<(), Refused> {
        self.close()
    }
}
