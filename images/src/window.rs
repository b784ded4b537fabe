//! Memory for zstd: a decoder keeps a window of what it has decoded, as large as the one who packed it liked; 8 MiB is
//! common. So that many layers at once do not take many of them, all decoders of the process share a budget.
//!
//! # Source
//! RFC 8878, sections 3.1.1.1 (frame header) and 3.1.1.1.2 (window descriptor).

use std::sync::{Condvar, Mutex, PoisonError};

/// For all windows together; a larger one gets all of it.
const BUDGET: u64 = 16 << 20;

/// Taken for a frame whose header is not at hand.
const USUAL: u64 = 8 << 20;

struct Budget {
    free: Mutex<u64>,
    freed: Condvar,
}

static SHARED: Budget = Budget::new();

/// A part of the budget; goes back when dropped.
pub(crate) struct Room(&'static Budget, u64);

/// Wait until there is room for decoding the stream that starts like this.
pub(crate) fn room(start: &[u8]) -> Room {
    SHARED.room(window(start).unwrap_or(USUAL))
}

impl Budget {
    const fn new() -> Self {
        Self { free: Mutex::new(BUDGET), freed: Condvar::new() }
    }

    fn room(&'static self, wanted: u64) -> Room {
        let wanted = wanted.min(BUDGET);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free < wanted).unwrap_or_else(PoisonError::into_inner);
        *free -= wanted;
        Room(self, wanted)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += self.1;
        self.0.freed.notify_all();
    }
}

/// The window that the first frame asks for; `None` if the stream starts with something else.
fn window(start: &[u8]) -> Option<u64> {
    let header = start.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (descriptor, rest) = header.split_first()?;
    if descriptor & 0x20 == 0 {
        let byte = rest.first()?;
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // One segment: the window is the content, whose size follows after an optional dictionary's number.
    let (at, length) = ([0, 1, 2, 4][usize::from(descriptor & 3)], 1usize << (descriptor >> 6));
    let field = rest.get(at..at + length)?;
    let size = field.iter().rev().fold(0u64, |size, byte| size << 8 | u64::from(*byte));
    Some(if length == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_in_the_header() {
        for (why, rest, expected) in [
            ("1 KiB", &[0x00, 0x00][..], Some(1 << 10)),
            ("8 MiB", &[0x00, 13 << 3], Some(8 << 20)),
            ("8 MiB and three eighths", &[0x04, 13 << 3 | 3], Some(11 << 20)),
            ("one segment of 200 bytes", &[0x20, 200], Some(200)),
            ("one segment of 256 + 0x0201 bytes", &[0x60, 1, 2], Some(0x301)),
            ("one segment, with a dictionary", &[0xa1, 9, 1, 0, 0, 1], Some(0x0100_0001)),
            ("cut off", &[0x60, 1], None),
        ] {
            let frame = [&[0x28, 0xb5, 0x2f, 0xfd], rest].concat();
            assert_eq!(window(&frame), expected, "{why}");
        }
        assert_eq!(window(b"PK"), None);
    }

    #[test]
    fn what_the_encoder_says_is_understood() {
        let data = vec![7; 3 << 20];
        let packed = zstd::encode_all(data.as_slice(), 3).unwrap();
        assert_eq!(window(&packed), Some(2 << 20));
    }

    #[test]
    fn the_budget_is_shared_and_given_back() {
        static OWN: Budget = Budget::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let room = OWN.room(u64::MAX);
                    assert_eq!(room.1, BUDGET);
                    assert_eq!(*OWN.free.lock().unwrap(), 0, "nobody else has any");
                });
            }
        });
        assert_eq!(*OWN.free.lock().unwrap(), BUDGET);
    }
}
