//! Text that comes from a file or a path, as it may be shown to people.
//!
//! A name or a text from somewhere else may hold anything: an escape sequence that moves the cursor or sets a
//! window's title, a control of the direction of writing that makes `gpj.exe` look like `exe.jpg`, a line break
//! that makes a line of its own that looks like one of ours. So all of it goes through one of three doors:
//!
//! - [`Shown`] is for a name or a value within a line: nothing of it is left raw, line breaks included. Errors,
//!   logs and tables write names with it.
//! - [`lines`] is for a whole text of ours on its way out, which has line breaks. Both streams of the programs
//!   pass through it (see `cli::output`), so that a value that was forgotten is harmless all the same.
//! - [`json`] is the same for JSON, which has escapes of its own.
//!
//! Characters are written as in Rust's strings, `\n` and `\u{202e}`; bytes that are not UTF-8 as `\xff`.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::path::Path;

/// Returns whether a character does something to a terminal or to its neighbours, other than being seen.
///
/// Joiners, which some scripts need within words, are not among them.
pub fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides and isolates of the direction of writing.
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Breaks of lines and paragraphs; what is deprecated, or only annotates.
            | '\u{2028}' | '\u{2029}' | '\u{206a}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}'
            // What has no width at all, and tags.
            | '\u{00ad}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Writes a character, escaped if it has to be.
fn write_char(f: &mut impl Write, c: char) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        c if is_control(c) => write!(f, "{}", c.escape_unicode()),
        c => f.write_char(c),
    }
}

/// A name or a value as it may stand within a line; made by [`Show::shown`].
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            let mut plain = chunk.valid();
            while let Some((at, c)) = plain.char_indices().find(|(_, c)| is_control(*c)) {
                let (before, rest) = plain.split_at(at);
                f.write_str(before)?;
                write_char(f, c)?;
                plain = rest.get(c.len_utf8()..).unwrap_or_default();
            }
            f.write_str(plain)?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Anything that has a text from elsewhere.
pub trait Show {
    /// Returns the text as it may stand within a line.
    fn shown(&self) -> Shown<'_>;
}

impl Show for str {
    fn shown(&self) -> Shown<'_> {
        Shown(self.as_bytes())
    }
}

impl Show for OsStr {
    fn shown(&self) -> Shown<'_> {
        Shown(self.as_encoded_bytes())
    }
}

impl Show for Path {
    fn shown(&self) -> Shown<'_> {
        self.as_os_str().shown()
    }
}

/// Returns a text of several lines without what [`is_control`] says, line breaks and tabs excepted.
pub fn lines(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| is_control(c) && !matches!(c, '\n' | '\t');
    replaced(text, is_bad, |out, c| {
        // Writing to a string does not fail.
        let _ = write_char(out, c);
    })
}

/// Returns JSON text that means the same, without what [`is_control`] says in its strings.
pub fn json(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| is_control(c) && !matches!(c, '\n' | '\r' | '\t');
    replaced(text, is_bad, |out, c| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    })
}

fn replaced(
    text: &str,
    is_bad: impl Fn(char) -> bool,
    write: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_bad(c) {
            true => write(&mut out, c),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_is_left_raw() {
        for (name, shown) in [
            (&b"plain name.txt"[..], "plain name.txt"),
            (b"a\x1b[2Jb", "a\\u{1b}[2Jb"),
            (b"a\nerror: b\r\t", "a\\nerror: b\\r\\t"),
            ("a\u{202e}txt.exe".as_bytes(), "a\\u{202e}txt.exe"),
            ("\u{9b}31m\u{7f}".as_bytes(), "\\u{9b}31m\\u{7f}"),
            (b"a\xffb\xc3", "a\\xffb\\xc3"),
            // These are how words are written.
            (
                "\u{645}\u{6cc}\u{200c}\u{62e} e\u{301} \u{1f469}\u{200d}\u{1f52c}".as_bytes(),
                "\u{645}\u{6cc}\u{200c}\u{62e} e\u{301} \u{1f469}\u{200d}\u{1f52c}",
            ),
        ] {
            assert_eq!(Shown(name).to_string(), shown);
        }
    }

    #[test]
    fn no_character_that_says_nothing_gets_through() {
        for c in '\0'..='\u{10ffff}' {
            let text = c.to_string();
            let shown = text.shown().to_string();
            assert!(!shown.contains(is_control), "{c:?}");
            assert!(!lines(&text).contains(|c| is_control(c) && c != '\n' && c != '\t'));
            let quoted = serde_json::to_string(&text).unwrap();
            let escaped = json(&quoted);
            assert!(!escaped.contains(is_control), "{c:?}");
            assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        }
    }

    #[test]
    fn lines_and_tabs_of_a_text_stay() {
        assert_eq!(lines("a\n\tb\x1b[1m\r\n"), "a\n\tb\\u{1b}[1m\\r\n");
        assert!(matches!(lines("a\n\tb"), Cow::Borrowed(_)));
    }
}
