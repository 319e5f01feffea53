//! The digest that a shard carries of itself: its seal.
//!
//! Until a set has a manifest, which may be days after its first shard, nothing else could tell that a
//! bit of a shard has flipped. The seal is the BLAKE3 of all bytes of the file, its own 64 digits in the
//! footer read as zeros, as in a manifest. It covers bytes rather than values: those are fewer, they
//! can be checked before a value is decoded, and none is left whose change goes unnoticed.

use std::io::{self, Write};
use std::ops::Range;

use memchr::memmem;

use super::schema::SEAL_KEY;
use crate::fs::{Digest, Hasher};

/// The digits that a seal counts as.
const ZEROS: [u8; 64] = [b'0'; 64];

/// Returns where the digits of a digest are, the last time that they occur.
fn place(bytes: &[u8], digest: Digest) -> Option<Range<usize>> {
    let at = memmem::rfind(bytes, digest.to_string().as_bytes())?;
    Some(at..at.checked_add(ZEROS.len())?)
}

/// Returns what the seal of a file has to be that claims to have this one; `None` when the digits are nowhere.
fn expected(bytes: &[u8], claimed: Digest) -> Option<Digest> {
    let place = place(bytes, claimed)?;
    let mut hasher = Hasher::default();
    hasher.update(bytes.get(..place.start)?);
    hasher.update(&ZEROS);
    hasher.update(bytes.get(place.end..)?);
    Some(hasher.digest())
}

/// A file that is not what was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Its footer says another digest than its bytes have.
    #[error("its BLAKE3 is {found}, its footer says {expected}")]
    Digest { expected: Digest, found: Digest },
    /// Its footer says none.
    #[error("its footer has no readable {SEAL_KEY}")]
    Absent,
}

/// Compares a file with the digest in its footer.
pub(super) fn check(bytes: &[u8], seal: Option<&str>) -> Result<(), Broken> {
    let expected = seal
        .and_then(|seal| seal.parse().ok())
        .ok_or(Broken::Absent)?;
    match self::expected(bytes, expected) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(Broken::Digest { expected, found }),
        None => Err(Broken::Absent),
    }
}

/// Writes a file through, and holds its footer back until the seal in it is known.
pub(super) struct Sealing<W> {
    inner: W,
    hasher: Hasher,
    held: Option<Vec<u8>>,
}

impl<W: Write> Sealing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
            held: None,
        }
    }

    /// Holds back what is written from now on, the footer. The digest that is returned stands for the
    /// seal in it; being one of what comes before, it is equal to nothing else there.
    pub(super) fn hold(&mut self) -> Digest {
        self.held = Some(Vec::new());
        self.hasher.digest()
    }

    /// Puts the seal where its stand-in is, and writes what was held back.
    pub(super) fn finish(mut self, stand_in: Digest) -> io::Result<W> {
        let mut held = self.held.take().unwrap_or_default();
        let place = place(&held, stand_in)
            .ok_or_else(|| io::Error::other("the footer has no place for the file's digest"))?;
        held.splice(place.clone(), ZEROS);
        self.hasher.update(&held);
        held.splice(place, self.hasher.digest().to_string().into_bytes());
        self.inner.write_all(&held)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Some(held) = &mut self.held {
            held.extend_from_slice(buf);
            return Ok(buf.len());
        }
        let written = self.inner.write(buf)?;
        self.hasher.update(buf.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> (Vec<u8>, Digest) {
        let mut file = Sealing::new(Vec::new());
        file.write_all(b"values").unwrap();
        let stand_in = file.hold();
        // Zeros of a footer's own are left as they are.
        let zeros = "0".repeat(64);
        write!(file, "{zeros}footer{stand_in}end").unwrap();
        let bytes = file.finish(stand_in).unwrap();
        let digits = String::from_utf8(bytes[76..140].to_vec()).unwrap();
        (bytes, digits.parse().unwrap())
    }

    #[test]
    fn the_seal_is_the_digest_of_the_file_with_zeros_in_its_place() {
        let (bytes, seal) = sealed();
        let zeros = "0".repeat(64);
        let blank = format!("values{zeros}footer{zeros}end");
        assert_eq!(seal, Digest::of(blank.as_bytes()));
        assert_eq!(expected(&bytes, seal), Some(seal));
    }

    #[test]
    fn no_byte_can_change_without_the_seal() {
        let (bytes, seal) = sealed();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_ne!(expected(&damaged, seal), Some(seal), "byte {at}");
        }
        assert_ne!(expected(&bytes[..bytes.len() - 1], seal), Some(seal));
    }

    #[test]
    fn a_footer_without_a_place_for_it_is_an_error() {
        let mut file = Sealing::new(Vec::new());
        let stand_in = file.hold();
        file.write_all(b"footer").unwrap();
        file.finish(stand_in).unwrap_err();
    }
}
