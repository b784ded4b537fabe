//! Frames of an exec tunnel: one kind byte, a big-endian u32 length, the payload.

/// A longer payload is refused: the peer is broken. Writers split at [`PAYLOAD_BYTES_SENT`].
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Largest payload that our writers send, so that streams interleave.
pub const PAYLOAD_BYTES_SENT: usize = 32 << 10;
const HEADER_BYTES: usize = 5;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Towards the process; empty means end of input.
    Stdin(Vec<u8>),
    /// From the process; with a terminal, all of its output.
    Stdout(Vec<u8>),
    /// From the process.
    Stderr(Vec<u8>),
    /// Towards the process: the terminal's new size, columns and rows.
    Resize(u16, u16),
    /// Towards the process: a signal by number.
    Signal(i32),
    /// Last frame from the process: its exit code (128 + signal when a signal ended it).
    Exit(i32),
    /// Last frame instead of `Exit`: it could not be run; a message for the person.
    Error(String),
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Unknown kind byte.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// Length over [`PAYLOAD_BYTES_MAX`].
    #[error("frame of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    Length(usize),
    /// Payload does not fit the kind.
    #[error("malformed payload in a frame of kind {0}")]
    Payload(u8),
}

impl Frame {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Resize(columns, rows) => (3, &[columns.to_be_bytes(), rows.to_be_bytes()].concat()),
            Self::Signal(number) => (4, &number.to_be_bytes()),
            Self::Exit(code) => (5, &code.to_be_bytes()),
            Self::Error(message) => (6, message.as_bytes()),
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
        out.push(kind);
        out.extend((payload.len() as u32).to_be_bytes());
        out.extend(payload);
        out
    }

    /// Takes the first whole frame off `buffer`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no frame; the connection is of no more use.
    pub fn decode(buffer: &mut Vec<u8>) -> Result<Option<Self>, FrameError> {
        let Some((header, rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let kind = header[0];
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(FrameError::Length(length));
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let number = |bytes: &[u8]| bytes.try_into().map(i32::from_be_bytes).map_err(|_| FrameError::Payload(kind));
        let frame = match kind {
            0 => Self::Stdin(payload.to_vec()),
            1 => Self::Stdout(payload.to_vec()),
            2 => Self::Stderr(payload.to_vec()),
            3 => match *payload {
                [a, b, c, d] => Self::Resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
                _ => return Err(FrameError::Payload(kind)),
            },
            4 => Self::Signal(number(payload)?),
            5 => Self::Exit(number(payload)?),
            6 => Self::Error(String::from_utf8_lossy(payload).into_owned()),
            _ => return Err(FrameError::Kind(kind)),
        };
        buffer.drain(..HEADER_BYTES + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        let frames = [
            Frame::Stdin(b"ls\n".to_vec()),
            Frame::Stdin(Vec::new()),
            Frame::Stdout(vec![0, 255]),
            Frame::Stderr(b"x".to_vec()),
            Frame::Resize(80, 24),
            Frame::Signal(2),
            Frame::Exit(137),
            Frame::Error("no such file".to_owned()),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for step in [1, 2, 7, bytes.len()] {
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for part in bytes.chunks(step) {
                buffer.extend(part);
                while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames, "cut every {step} bytes");
        }
    }

    #[test]
    fn nonsense_is_an_error_not_a_wait() {
        assert_eq!(Frame::decode(&mut vec![9, 0, 0, 0, 0]), Err(FrameError::Kind(9)));
        assert_eq!(Frame::decode(&mut vec![1, 255, 255, 255, 255]), Err(FrameError::Length(u32::MAX as usize)));
        assert_eq!(Frame::decode(&mut vec![3, 0, 0, 0, 1, 7]), Err(FrameError::Payload(3)));
    }
}
