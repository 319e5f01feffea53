//! Files in memory, as what another process reads.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::process::Source;

impl Source for Bytes {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let place = |at| usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.get(place(range.start)..place(range.end));
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
