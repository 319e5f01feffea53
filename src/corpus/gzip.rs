//! gzip as the program of that name reads it: members one after another, and zeros after each of them.
//!
//! Tapes and some stores fill a file up with zeros. The library's reader of several members takes them for a damaged
//! member; gzip and Python's `gzip` skip them.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// Unpacks all members of a stream.
pub(super) struct Members<R>(State<R>);

enum State<R> {
    Member(Box<GzDecoder<R>>),
    /// After the last member.
    End(Option<R>),
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(packed: R) -> Self {
        Self(State::Member(Box::new(GzDecoder::new(packed))))
    }

    pub(super) fn get_ref(&self) -> Option<&R> {
        match &self.0 {
            State::Member(member) => Some(member.get_ref()),
            State::End(packed) => packed.as_ref(),
        }
    }

    pub(super) fn into_inner(self) -> Option<R> {
        match self.0 {
            State::Member(member) => Some(member.into_inner()),
            State::End(packed) => packed,
        }
    }

    /// Goes from the end of a member to the next one, or to the end.
    fn advance(&mut self) -> io::Result<()> {
        let State::Member(member) = std::mem::replace(&mut self.0, State::End(None)) else {
            return Ok(());
        };
        let mut packed = member.into_inner();
        let is_end = skip_zeros(&mut packed);
        self.0 = match is_end {
            Ok(false) => State::Member(Box::new(GzDecoder::new(packed))),
            Ok(true) | Err(_) => State::End(Some(packed)),
        };
        is_end.map(|_| ())
    }
}

/// Leaves out zeros; whether nothing comes after them.
fn skip_zeros(packed: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let block = packed.fill_buf()?;
        if block.is_empty() {
            return Ok(true);
        }
        let zeros = block.iter().take_while(|&&byte| byte == 0).count();
        let all = zeros == block.len();
        packed.consume(zeros);
        if !all {
            return Ok(false);
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let State::Member(member) = &mut self.0 {
            let read = member.read(buf)?;
            if read > 0 || buf.is_empty() {
                return Ok(read);
            }
            self.advance()?;
        }
        Ok(0)
    }
}
