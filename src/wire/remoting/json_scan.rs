//! The tokens of JSON text: strings as ranges, literals, and the way past a value that nobody wants.
//!
//! Used by the header decoder, which must not allocate, and by the body parser in `json`. Control characters inside
//! strings are accepted, as fastjson accepts them.

use std::borrow::Cow;
use std::ops::Range;

/// Objects and arrays within each other. RocketMQ's own bodies need six.
pub const DEPTH_MAX: usize = 64;

/// Text that is not JSON, with the byte at which that shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the JSON text: {wanted} was expected")]
pub struct ScanError {
    pub at: usize,
    pub wanted: &'static str,
}

/// Content of a string, without its quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StringToken {
    pub range: Range<usize>,
    pub escaped: bool,
}

/// How the escapes of U+0001 and U+0002 go on behind their backslash, which separate properties.
const SEPARATOR: &[u8] = b"u000";

/// Eight times the same byte.
const fn eight(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The upper bit of each byte of `word` that is below `limit`, of 128 at most. Above the first one others may be set.
const fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(eight(limit)) & !word & eight(0x80)
}

/// Where the first of two bytes is, from `from` on. Eight bytes at a time: what a header says is short, so that setting up
/// wider steps costs more than they save.
#[inline]
fn first_of(text: &[u8], from: usize, [one, other]: [u8; 2]) -> Option<usize> {
    let mut at = from;
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*chunk);
        let found = below(word ^ eight(one), 1) | below(word ^ eight(other), 1);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = text.get(at..)?;
    rest.iter()
        .position(|&byte| byte == one || byte == other)
        .map(|found| at + found)
}

/// Whether [`write_string`] has to escape any of these.
#[inline]
fn needs_escapes(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks();
    words.iter().any(|chunk| {
        let word = u64::from_le_bytes(*chunk);
        let quoted = below(word ^ eight(b'"'), 1) | below(word ^ eight(b'\\'), 1);
        (quoted | below(word, b' ')) != 0
    }) || rest
        .iter()
        .any(|&byte| byte < b' ' || byte == b'"' || byte == b'\\')
}

/// A place in JSON text.
pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// Byte offset of the next token's search.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    pub fn error<T>(&self, wanted: &'static str) -> Result<T, ScanError> {
        Err(ScanError {
            at: self.at,
            wanted,
        })
    }

    /// First byte of the next token; it stays.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Takes `byte` if it is next.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        self.at += usize::from(next);
        next
    }

    #[inline]
    pub fn expect(&mut self, byte: u8, wanted: &'static str) -> Result<(), ScanError> {
        if self.take(byte) {
            Ok(())
        } else {
            self.error(wanted)
        }
    }

    /// After an element: true if another one follows, false if `close` was taken.
    #[inline]
    pub fn another(&mut self, close: u8) -> Result<bool, ScanError> {
        if self.take(b',') {
            return Ok(true);
        }
        self.expect(close, "',' or the closing bracket")?;
        Ok(false)
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.error("the end of the text"),
        }
    }

    /// The string that is next.
    pub fn string(&mut self) -> Result<StringToken, ScanError> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let Some(found) = first_of(self.text, self.at, [b'"', b'\\']) else {
                self.at = self.text.len();
                return self.error("the closing quote of a string");
            };
            self.at = found;
            if self.text[self.at] == b'"' {
                let range = start..self.at;
                self.at += 1;
                return Ok(StringToken { range, escaped });
            }
            escaped = true;
            self.at += 1;
            self.check_escape()?;
        }
    }

    /// Takes `"x":`, a name of one letter and its colon, if just that is next: where the letter is.
    #[inline]
    pub fn letter(&mut self) -> Option<Range<usize>> {
        match self.text.get(self.at..)? {
            [b'"', letter, b'"', b':', ..] if letter.is_ascii_alphabetic() => {
                self.at += 4;
                Some(self.at - 3..self.at - 2)
            }
            _ => None,
        }
    }

    /// Takes what follows a backslash: JSON's escapes, and those that only fastjson has.
    fn check_escape(&mut self) -> Result<(), ScanError> {
        if self.text[self.at..].starts_with(SEPARATOR) {
            // One digit is left, and any of them is right.
            if let Some(b'0'..=b'9') = self.text.get(self.at + SEPARATOR.len()) {
                self.at += SEPARATOR.len() + 1;
                return Ok(());
            }
        }
        match self.text.get(self.at) {
            Some(b'"' | b'\\' | b'/' | b'\'' | b'b' | b'f' | b'n' | b'r' | b't' | b'v') => {
                self.at += 1
            }
            Some(b'0'..=b'7') => self.at += 1,
            Some(b'u') if hex(&self.text[self.at + 1..], 4).is_some() => self.at += 5,
            Some(b'x') if hex(&self.text[self.at + 1..], 2).is_some() => self.at += 3,
            _ => return self.error("an escape that JSON knows"),
        }
        Ok(())
    }

    /// The number, true, false or null that is next: everything up to a separator.
    pub fn literal(&mut self) -> Result<Range<usize>, ScanError> {
        self.peek();
        let start = self.at;
        self.at += self.text[start..]
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'+' | b'.'))
            .unwrap_or(self.text.len() - start);
        if self.at == start {
            return self.error("a value");
        }
        Ok(start..self.at)
    }

    /// Goes past the value that is next and returns where it was.
    pub fn skip_value(&mut self, depth_left: usize) -> Result<Range<usize>, ScanError> {
        let Some(first) = self.peek() else {
            return self.error("a value");
        };
        let start = self.at;
        match first {
            b'"' => {
                self.string()?;
            }
            b'{' | b'[' => {
                if depth_left == 0 {
                    return self.error("a value that is nested less deeply");
                }
                self.at += 1;
                let close = if first == b'{' { b'}' } else { b']' };
                if !self.take(close) {
                    loop {
                        if first == b'{' {
                            self.skip_value(depth_left - 1)?;
                            self.expect(b':', "':'")?;
                        }
                        self.skip_value(depth_left - 1)?;
                        if !self.another(close)? {
                            break;
                        }
                    }
                }
            }
            _ => {
                self.literal()?;
            }
        }
        Ok(start..self.at)
    }
}

/// The number that the first `count` hexadecimal digits of `text` say.
fn hex(text: &[u8], count: usize) -> Option<u16> {
    text.get(..count)?.iter().try_fold(0, |number, &digit| {
        Some((number << 4) | (digit as char).to_digit(16)? as u16)
    })
}

/// The bytes of a string's content that [`Scanner::string`] has checked. A half of a surrogate pair becomes U+FFFD.
pub fn unescape(content: &[u8]) -> Cow<'_, [u8]> {
    let next = |text: &[u8]| first_of(text, 0, [b'\\'; 2]);
    let Some(mut run) = next(content) else {
        return Cow::Borrowed(content);
    };
    let mut plain = Vec::with_capacity(content.len());
    let mut rest = content;
    loop {
        plain.extend_from_slice(&rest[..run]);
        if let [_, after @ ..] = &rest[run..]
            && let Some([digit @ b'0'..=b'9', after @ ..]) = after.strip_prefix(SEPARATOR)
        {
            plain.push(digit - b'0');
            rest = after;
            run = next(rest).unwrap_or(rest.len());
            continue;
        }
        let Some((&kind, after)) = rest[run..].get(1..).and_then(<[u8]>::split_first) else {
            break;
        };
        rest = after;
        match kind {
            b'b' => plain.push(0x08),
            b'f' => plain.push(0x0C),
            b'n' => plain.push(b'\n'),
            b'r' => plain.push(b'\r'),
            b't' => plain.push(b'\t'),
            b'v' => plain.push(0x0B),
            b'0'..=b'7' => plain.push(kind - b'0'),
            b'x' => {
                let code = hex(rest, 2).unwrap_or(0xFFFD);
                rest = rest.get(2..).unwrap_or_default();
                put_char(char::from_u32(code.into()), &mut plain);
            }
            b'u' => {
                let first = hex(rest, 4).unwrap_or(0xFFFD);
                rest = rest.get(4..).unwrap_or_default();
                let second = match rest {
                    [b'\\', b'u', low @ ..] if (0xD800..0xDC00).contains(&first) => {
                        hex(low, 4).filter(|low| (0xDC00..0xE000).contains(low))
                    }
                    _ => None,
                };
                let units = [first, second.unwrap_or_default()];
                let used = if second.is_some() {
                    rest = &rest[6..];
                    &units[..]
                } else {
                    &units[..1]
                };
                for character in char::decode_utf16(used.iter().copied()) {
                    put_char(character.ok(), &mut plain);
                }
            }
            other => plain.push(other),
        }
        run = next(rest).unwrap_or(rest.len());
    }
    Cow::Owned(plain)
}

fn put_char(character: Option<char>, plain: &mut Vec<u8>) {
    let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
    plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Appends `text` as a JSON string with its quotes, escaped as fastjson escapes it.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    if !needs_escapes(bytes) {
        out.extend_from_slice(bytes);
        return out.push(b'"');
    }
    let mut written = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let short = match byte {
            b'"' | b'\\' => byte,
            0x08 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            0x0C => b'f',
            b'\r' => b'r',
            0x00..=0x1F => 0,
            _ => continue,
        };
        out.extend_from_slice(&bytes[written..at]);
        written = at + 1;
        if short != 0 {
            out.extend_from_slice(&[b'\\', short]);
        } else {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(text: &str) -> Option<String> {
        let mut scanner = Scanner::new(text.as_bytes());
        let token = scanner.string().ok()?;
        Some(
            String::from_utf8(unescape(&text.as_bytes()[token.range]).into_owned())
                .unwrap_or_else(|_| "not UTF-8".into()),
        )
    }

    #[test]
    fn escapes_mean_what_json_says() {
        assert_eq!(
            plain(r#""a\u0001b\u0002\n\t\"\\\/""#).unwrap(),
            "a\u{1}b\u{2}\n\t\"\\/"
        );
        assert_eq!(plain(r#""\uD83D\uDE00x""#).unwrap(), "\u{1F600}x");
        assert_eq!(plain(r#""\uD83Dx\uDE00""#).unwrap(), "\u{FFFD}x\u{FFFD}");
        assert_eq!(
            plain(r#""\uD83D\uD83D\uDE00""#).unwrap(),
            "\u{FFFD}\u{1F600}"
        );
        assert_eq!(
            plain(r#""\v\1\x02\xe9\'""#).unwrap(),
            "\u{B}\u{1}\u{2}\u{E9}'"
        );
        assert_eq!(
            plain(r#""\u0001\u0009\u000A\u000a\u00020\u0041\\u0001""#).unwrap(),
            "\u{1}\t\n\n\u{2}0A\\u0001"
        );
        for bad in [
            r#""\u12""#,
            r#""\x1""#,
            r#""\u000""#,
            r#""\u000x""#,
            r#""\u000"#,
            r#""\8""#,
            r#""\q""#,
            r#""abc"#,
            r#""abc\"#,
            "x",
        ] {
            assert_eq!(plain(bad), None, "{bad}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_an_error_and_up_to_it_is_not() {
        for (depth, fits) in [(DEPTH_MAX, true), (DEPTH_MAX + 1, false), (1 << 20, false)] {
            let mut text = "[".repeat(depth);
            if fits {
                text += &"]".repeat(depth);
            }
            let result = Scanner::new(text.as_bytes()).skip_value(DEPTH_MAX);
            assert_eq!(result.is_ok(), fits, "depth {depth}: {result:?}");
        }
    }

    fn reads_back(text: &str) -> Result<(), TestCaseError> {
        let mut json = Vec::new();
        write_string(text, &mut json);
        prop_assert_eq!(&serde_json::from_slice::<String>(&json).unwrap(), text);
        let back = plain(std::str::from_utf8(&json).unwrap());
        prop_assert_eq!(back.as_deref(), Some(text));
        Ok(())
    }

    proptest! {
        #[test]
        fn an_escaped_string_reads_back(text in any::<String>()) {
            reads_back(&text)?;
        }

        #[test]
        fn an_escaped_string_of_few_characters_reads_back(text in "[ -#\\x00-\\x1F\\\\\\[a\\x7F\u{80}\u{9F}é]{0,40}") {
            reads_back(&text)?;
        }

        #[test]
        fn the_first_of_two_bytes_is_found(text in proptest::collection::vec(0..6u8, 0..40), from in 0..42usize, one in 0..6u8, other in 0..6u8) {
            let text: Vec<u8> = text.iter().map(|&at| b"\x00\x01\"\\\xFF\x80"[usize::from(at)]).collect();
            let bytes = [one, other].map(|at| b"\x00\x01\"\\\xFF\x80"[usize::from(at)]);
            let expected = text
                .iter()
                .enumerate()
                .find(|(at, byte)| *at >= from && bytes.contains(byte))
                .map(|(at, _)| at);
            prop_assert_eq!(first_of(&text, from, bytes), expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            let _ = Scanner::new(&bytes).skip_value(DEPTH_MAX);
            let _ = unescape(&bytes);
        }
    }
}
