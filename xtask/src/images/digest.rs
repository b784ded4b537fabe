//! SHA-256, as image stores name things.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::path::Path;

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digest of bytes, lower-case hexadecimal.
pub(crate) fn of(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

/// Digest of a file's content.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(Error::file("open", path))?;
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut file, &mut hashing).map_err(Error::file("read", path))?;
    Ok(hashing.finish().1)
}

/// Passes bytes on and keeps their digest.
#[derive(Debug)]
pub(crate) struct Hashing<W> {
    to: W,
    state: Sha256,
}

impl<W: Write> Hashing<W> {
    /// Nothing has passed yet.
    pub(crate) fn new(to: W) -> Self {
        Self { to, state: Sha256::new() }
    }

    /// What the bytes were passed to, and their digest.
    pub(crate) fn finish(self) -> (W, String) {
        (self.to, hex(self.state.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.state.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of(b""), empty);
        let mut hashing = Hashing::new(Vec::new());
        hashing.write_all(b"a").unwrap();
        hashing.write_all(b"bc").unwrap();
        let (bytes, digest) = hashing.finish();
        assert_eq!(bytes, b"abc");
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest, of(b"abc"));
    }
}
