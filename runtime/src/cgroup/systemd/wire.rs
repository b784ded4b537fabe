//! Bytes of D-Bus messages: the few types that talking to systemd takes, little-endian.
//!
//! # Source
//! D-Bus specification 0.43, "Message Protocol" and "Type System".

use std::fmt;

/// Longest message we read: answers of systemd are far below.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes before the array of header fields.
pub const FIXED_HEADER: usize = 16;

/// Kind of a message.
pub const METHOD_CALL: u8 = 1;
/// Kind of a message.
pub const METHOD_RETURN: u8 = 2;
/// Kind of a message.
pub const ERROR: u8 = 3;
/// Kind of a message.
pub const SIGNAL: u8 = 4;

/// A value in a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    U32s(Vec<u32>),
    /// `as`
    Texts(Vec<String>),
    /// `a(ss)`
    TextPairs(Vec<(String, String)>),
    /// `a(st)`
    TextNumbers(Vec<(String, u64)>),
}

impl Value {
    /// Its type.
    pub fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::U32s(_) => "au",
            Self::Texts(_) => "as",
            Self::TextPairs(_) => "a(ss)",
            Self::TextNumbers(_) => "a(st)",
        }
    }
}

/// A property of a unit.
pub type Property = (&'static str, Value);

/// Bytes that are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is damaged: {0}")]
pub struct Damaged(&'static str);

/// Appends values, each where its alignment wants it.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// `u`
    pub fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    /// `t`
    pub fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// `b`
    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// `s` or `o`
    pub fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// `g`
    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array: its length, the gap before the first element, the elements.
    fn array<T>(&mut self, align: usize, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(align);
        let start = self.0.len();
        for item in items {
            self.align(align);
            each(self, item);
        }
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// `v`
    pub fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::I32(value) => self.u32(*value as u32),
            Value::U32(value) => self.u32(*value),
            Value::I64(value) => self.u64(*value as u64),
            Value::U64(value) => self.u64(*value),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => self.array(1, bytes, |writer, byte| writer.0.push(*byte)),
            Value::U32s(numbers) => self.array(4, numbers, |writer, number| writer.u32(*number)),
            Value::Texts(texts) => self.array(4, texts, |writer, text| writer.text(text)),
            Value::TextPairs(pairs) => self.array(8, pairs, |writer, (first, second)| {
                writer.text(first);
                writer.text(second);
            }),
            Value::TextNumbers(pairs) => self.array(8, pairs, |writer, (first, second)| {
                writer.text(first);
                writer.u64(*second);
            }),
        }
    }

    /// `a(sv)`
    pub fn properties<N: AsRef<str>>(&mut self, properties: &[(N, Value)]) {
        self.array(8, properties, |writer, (name, value)| {
            writer.text(name.as_ref());
            writer.variant(value);
        });
    }

    /// An empty `a(sa(sv))`.
    pub fn no_auxiliary_units(&mut self) {
        self.array::<()>(8, &[], |_, ()| {});
    }
}

/// Whom a call goes to.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Name on the bus; nobody's on a direct connection.
    pub destination: Option<&'a str>,
    /// Object.
    pub path: &'a str,
    /// Interface.
    pub interface: &'a str,
    /// Method.
    pub member: &'a str,
    /// Types of the body.
    pub signature: &'a str,
}

impl Call<'_> {
    /// The whole message.
    pub fn encode(&self, serial: u32, body: &[u8]) -> Vec<u8> {
        const PATH: u8 = 1;
        const INTERFACE: u8 = 2;
        const MEMBER: u8 = 3;
        const DESTINATION: u8 = 6;
        const SIGNATURE: u8 = 8;
        let mut writer = Writer(vec![b'l', METHOD_CALL, 0, 1]);
        writer.u32(body.len() as u32);
        writer.u32(serial);
        let fields: Vec<(u8, &str, &str)> = [
            Some((PATH, "o", self.path)),
            self.destination.map(|name| (DESTINATION, "s", name)),
            Some((INTERFACE, "s", self.interface)),
            Some((MEMBER, "s", self.member)),
            Some((SIGNATURE, "g", self.signature)).filter(|_| !self.signature.is_empty()),
        ]
        .into_iter()
        .flatten()
        .collect();
        writer.array(8, &fields, |writer, (code, kind, text)| {
            writer.0.push(*code);
            writer.signature(kind);
            if *kind == "g" {
                writer.signature(text);
            } else {
                writer.text(text);
            }
        });
        writer.align(8);
        writer.0.extend(body);
        writer.0
    }
}

/// Takes values out of a message.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Read a body or a header.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let end = self.at.checked_add(count).ok_or(Damaged("a length is absurd"))?;
        let bytes = self.bytes.get(self.at..end).ok_or(Damaged("it ends too early"))?;
        self.at = end;
        Ok(bytes)
    }

    fn align(&mut self, to: usize) -> Result<(), Damaged> {
        let gap = self.at.next_multiple_of(to) - self.at;
        self.take(gap).map(drop)
    }

    /// `y`
    fn byte(&mut self) -> Result<u8, Damaged> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// `u`
    pub fn u32(&mut self) -> Result<u32, Damaged> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// `s` or `o`
    pub fn text(&mut self) -> Result<&'a str, Damaged> {
        let length = self.u32()? as usize;
        let text = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(text).map_err(|_| Damaged("a text is not UTF-8"))
    }

    /// `g`
    fn signature(&mut self) -> Result<&'a str, Damaged> {
        let length = self.byte()?.into();
        let text = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(text).map_err(|_| Damaged("a signature is not UTF-8"))
    }

    /// A variant that must hold a text.
    pub fn text_variant(&mut self) -> Result<&'a str, Damaged> {
        match self.signature()? {
            "s" | "o" => self.text(),
            _ => Err(Damaged("a variant holds another type")),
        }
    }
}

/// A message that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `METHOD_RETURN`, `ERROR`, `SIGNAL`.
    pub kind: u8,
    /// The call it answers.
    pub reply_to: Option<u32>,
    /// Name of a signal.
    pub member: String,
    /// Name of an error.
    pub error: String,
    /// Types of the body.
    pub signature: String,
    /// Values.
    pub body: Vec<u8>,
}

impl Message {
    /// How long a message is in all, from its first [`FIXED_HEADER`] bytes.
    ///
    /// # Errors
    /// They do not begin a little-endian message, or one that is longer than anything systemd says.
    pub fn length(header: &[u8; FIXED_HEADER]) -> Result<usize, Damaged> {
        if header[0] != b'l' || header[3] != 1 {
            return Err(Damaged("it is not little-endian, or of another version of the protocol"));
        }
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (body, fields) = (number(4) as usize, number(12) as usize);
        let length = (FIXED_HEADER + fields).next_multiple_of(8) + body;
        if length > MESSAGE_BYTES_MAX { Err(Damaged("it is too long")) } else { Ok(length) }
    }

    /// Take a whole message apart.
    ///
    /// # Errors
    /// It is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let header: &[u8; FIXED_HEADER] = bytes.first_chunk().ok_or(Damaged("it ends too early"))?;
        let length = Self::length(header)?;
        let mut reader = Reader { bytes, at: 12 };
        let end = reader.u32()? as usize + FIXED_HEADER;
        let mut message = Self {
            kind: header[1],
            reply_to: None,
            member: String::new(),
            error: String::new(),
            signature: String::new(),
            body: Vec::new(),
        };
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            match (code, reader.signature()?) {
                (3, "s") => message.member = reader.text()?.to_owned(),
                (4, "s") => message.error = reader.text()?.to_owned(),
                (5, "u") => message.reply_to = Some(reader.u32()?),
                (8, "g") => message.signature = reader.signature()?.to_owned(),
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.u32()?),
                _ => return Err(Damaged("a header field has an unknown type")),
            }
        }
        let start = end.next_multiple_of(8);
        message.body = bytes.get(start..length).ok_or(Damaged("it ends too early"))?.to_vec();
        Ok(message)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.signature.starts_with('s') { Reader::new(&self.body).text().ok() } else { None };
        match text {
            Some(text) => write!(f, "{text} ({})", self.error),
            None => f.write_str(&self.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_to_the_last_byte() {
        // The order of fields is free.
        let hello = Call {
            destination: Some("org.freedesktop.DBus"),
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            signature: "",
        };
        let want: &[u8] = b"l\x01\0\x01\0\0\0\0\x01\0\0\0\x6e\0\0\0\
            \x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\
            \x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
            \x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
            \x03\x01s\0\x05\0\0\0Hello\0\0\0";
        assert_eq!(hello.encode(1, &[]), want);
    }

    #[test]
    fn values_to_the_last_byte() {
        for (value, want) in [
            (Value::Bool(true), &b"\x01b\0\0\x01\0\0\0"[..]),
            (Value::U32(7), b"\x01u\0\0\x07\0\0\0"),
            (Value::I32(-1), b"\x01i\0\0\xff\xff\xff\xff"),
            (Value::U64(7), b"\x01t\0\0\0\0\0\0\x07\0\0\0\0\0\0\0"),
            (Value::I64(-1), b"\x01x\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
            (Value::Text("ab".into()), b"\x01s\0\0\x02\0\0\0ab\0"),
            (Value::Bytes(vec![1, 2]), b"\x02ay\0\x02\0\0\0\x01\x02"),
            (Value::U32s(vec![9]), b"\x02au\0\x04\0\0\0\x09\0\0\0"),
            (Value::Texts(vec!["x".into(), "yz".into()]), b"\x02as\0\x0f\0\0\0\x01\0\0\0x\0\0\0\x02\0\0\0yz\0"),
            // Structures begin at a multiple of eight; the length does not count that gap.
            (Value::TextPairs(vec![]), b"\x05a(ss)\0\0\0\0\0\0\0\0\0\0"),
            (
                Value::TextPairs(vec![("a".into(), "b".into())]),
                b"\x05a(ss)\0\0\x0e\0\0\0\0\0\0\0\x01\0\0\0a\0\0\0\x01\0\0\0b\0",
            ),
            (
                Value::TextNumbers(vec![("a".into(), 5)]),
                b"\x05a(st)\0\0\x10\0\0\0\0\0\0\0\x01\0\0\0a\0\0\0\x05\0\0\0\0\0\0\0",
            ),
        ] {
            let mut writer = Writer::default();
            writer.variant(&value);
            assert_eq!(writer.0, want, "{value:?}");
        }
    }

    #[test]
    fn a_message_there_and_back() {
        let call = Call { destination: None, path: "/a", interface: "i.f", member: "M", signature: "so" };
        let mut body = Writer::default();
        body.text("value");
        body.text("/job/1");
        let bytes = call.encode(5, &body.0);
        let header: [u8; FIXED_HEADER] = bytes[..FIXED_HEADER].try_into().expect("long enough");
        assert_eq!(Message::length(&header), Ok(bytes.len()));
        let message = Message::decode(&bytes).expect("a message");
        assert_eq!((message.kind, message.member.as_str(), message.signature.as_str()), (METHOD_CALL, "M", "so"));
        let mut reader = Reader::new(&message.body);
        assert_eq!((reader.text(), reader.text()), (Ok("value"), Ok("/job/1")));
    }

    #[test]
    fn damaged_messages_are_refused() {
        let call = Call { destination: None, path: "/a", interface: "i.f", member: "M", signature: "s" };
        let mut body = Writer::default();
        body.text("value");
        let good = call.encode(5, &body.0);
        for length in 0..good.len() {
            assert!(Message::decode(&good[..length]).is_err(), "cut at {length}");
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                // Whatever it says, it is an error or a message, never a panic.
                let _ = Message::decode(&bytes);
            }
        }
        let mut huge = [0; FIXED_HEADER];
        huge[..4].copy_from_slice(b"l\x02\0\x01");
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Message::length(&huge).is_err());
    }
}
