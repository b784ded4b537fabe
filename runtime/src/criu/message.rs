//! The few kinds of protocol buffer fields that CRIU's requests and answers consist of.
//!
//! A field is a key (number and kind), then a variable-length integer, or a length and bytes.

/// Kinds of fields on the wire.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// A message being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// The encoded bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Add a number.
    #[must_use]
    pub fn number(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3 | VARINT);
        self.varint(value as u64);
        self
    }

    /// Add a switch, unless it is off, which is what absence means.
    #[must_use]
    pub fn flag(self, field: u64, on: bool) -> Self {
        if on { self.number(field, 1) } else { self }
    }

    /// Add text.
    #[must_use]
    pub fn text(mut self, field: u64, text: &str) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Add a message inside this one.
    #[must_use]
    pub fn message(mut self, field: u64, inner: &Self) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(inner.0.len() as u64);
        self.0.extend_from_slice(&inner.0);
        self
    }
}

/// The value of a field that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number or switch.
    Number(i64),
    /// Text or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// As a number, 0 for anything else.
    pub fn as_number(self) -> i64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(_) => 0,
        }
    }

    /// As bytes, empty for anything else.
    pub fn as_bytes(self) -> &'a [u8] {
        match self {
            Self::Number(_) => &[],
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The fields of a message, as far as it can be understood.
#[derive(Debug, Clone)]
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let value = match key & 7 {
            VARINT => Value::Number(self.varint()? as i64),
            kind @ (BYTES | FIXED64 | FIXED32) => {
                let length = match kind {
                    FIXED64 => 8,
                    FIXED32 => 4,
                    _ => usize::try_from(self.varint()?).ok()?,
                };
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes() {
        let inner = Message::default().number(1, 300);
        let message =
            Message::default().number(1, 1).text(10, "dump.log").flag(3, true).flag(4, false).message(2, &inner);
        assert_eq!(message.bytes(), b"\x08\x01\x52\x08dump.log\x18\x01\x12\x03\x08\xac\x02");
        assert_eq!(Message::default().number(49, -1).bytes(), b"\x88\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    }

    #[test]
    fn what_is_written_is_read() {
        let inner = Message::default().text(1, "k").number(2, -1);
        let message = Message::default().number(5, i64::MAX).message(27, &inner).text(1, "");
        let read: Vec<_> = Fields(message.bytes()).collect();
        assert_eq!(read, [(5, Value::Number(i64::MAX)), (27, Value::Bytes(inner.bytes())), (1, Value::Bytes(b""))]);
        assert_eq!(Fields(inner.bytes()).last(), Some((2, Value::Number(-1))));
    }

    #[test]
    fn nonsense_ends_quietly() {
        for bytes in
            [&b"\xff"[..], b"\x0a\x05ab", b"\x0b\x01", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\x09\x01"]
        {
            assert_eq!(Fields(bytes).count(), 0, "{bytes:?}");
        }
    }
}
