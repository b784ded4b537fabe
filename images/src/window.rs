//! Memory for zstd: a decoder keeps a window of what it has decoded, as large as the one who packed it liked; 8 MiB is
//! common. So that many layers at once do not take many of them, all decoders of the process share a budget (a decoder is
//! several times as fast as what comes after it, so others hardly wait in vain); and so that each thread's heap does not keep what one decoder has had, the next one gets the memory of the last.
//!
//! # Source
//! RFC 8878, sections 3.1.1.1 (frame header) and 3.1.1.1.2 (window descriptor).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use zstd::zstd_safe::{DCtx, ResetDirective};

/// For all windows together: one of the usual size. A larger one gets all of it, and what it needs.
const BUDGET: u64 = USUAL;

/// Taken for a frame whose header is not at hand.
const USUAL: u64 = 8 << 20;

struct Budget {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    free: u64,
    /// Contexts that nobody uses now.
    idle: Vec<DCtx<'static>>,
    /// Those for whom they are kept.
    keepers: usize,
}

/// While one of these lives, contexts are kept for the next decoder.
pub(crate) struct Keep(&'static Budget);

/// For work that decodes several layers, one after the other.
pub(crate) fn keep() -> Keep {
    SHARED.keep()
}

static SHARED: Budget = Budget::new();

/// A part of the budget, and what a decoder needs; goes back when dropped.
pub(crate) struct Room {
    budget: &'static Budget,
    bytes: u64,
    context: Option<DCtx<'static>>,
}

/// Wait until there is room for decoding the stream that starts like this.
pub(crate) fn room(start: &[u8]) -> Room {
    SHARED.room(window(start).unwrap_or(USUAL))
}

impl Budget {
    const fn new() -> Self {
        Self { state: Mutex::new(State { free: BUDGET, idle: Vec::new(), keepers: 0 }), freed: Condvar::new() }
    }

    fn keep(&'static self) -> Keep {
        self.locked().keepers += 1;
        Keep(self)
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&'static self, wanted: u64) -> Room {
        let bytes = wanted.min(BUDGET);
        let state = self.freed.wait_while(self.locked(), |state| state.free < bytes);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.free -= bytes;
        Room { budget: self, bytes, context: state.idle.pop() }
    }
}

impl Room {
    /// Ready for a new stream.
    pub(crate) fn context(&mut self) -> &mut DCtx<'static> {
        let context = self.context.get_or_insert_with(DCtx::create);
        // Fails only for a directive that is not known.
        let _ = context.reset(ResetDirective::SessionOnly);
        context
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.budget.locked();
        state.free += self.bytes;
        state.idle.extend(self.context.take());
        if state.keepers == 0 {
            state.idle = Vec::new();
        }
        drop(state);
        self.budget.freed.notify_all();
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        let mut state = self.0.locked();
        state.keepers -= 1;
        if state.keepers == 0 {
            state.idle = Vec::new();
        }
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
        let state = || {
            let state = OWN.locked();
            (state.free, state.idle.len())
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut room = OWN.room(u64::MAX);
                    let _ = room.context();
                    assert_eq!(state().0, 0, "nobody else has any");
                });
            }
        });
        assert_eq!(state(), (BUDGET, 0));
        let keep = OWN.keep();
        let mut room = OWN.room(5);
        let _ = room.context();
        drop(room);
        assert_eq!(state(), (BUDGET, 1), "kept for the next");
        assert!(OWN.room(7).context.is_some(), "which gets it");
        drop(keep);
        assert_eq!(state(), (BUDGET, 0));
    }
}
