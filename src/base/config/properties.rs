//! The text of a configuration file: Java's properties syntax, since RocketMQ's own files have to work as they are.
//!
//! `key=value`, `key: value` or `key value`; `#` and `!` start a comment line; a backslash at the end of a line joins the
//! next one; `\n`, `\t`, `\uXXXX` and escaped separators are understood. Each pair keeps the number of its line for the
//! messages about it. Unlike Java's reader this one takes UTF-8 and drops blanks behind a value, which are never meant.

use std::iter::Peekable;
use std::str::Chars;

/// One `key=value` of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
    /// Line of the key, from 1.
    pub line: usize,
}

/// All pairs in the order of the file. No text is an error: what has no separator is a key with an empty value.
pub fn parse(text: &str) -> Vec<Pair> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pairs = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, first)) = lines.next() {
        let start = first.trim_start();
        if start.is_empty() || start.starts_with(['#', '!']) {
            continue;
        }
        let mut logical = start.to_owned();
        while ends_with_continuation(&logical) {
            logical.pop();
            match lines.next() {
                Some((_, next)) => logical.push_str(next.trim_start()),
                None => break,
            }
        }
        let (key, value) = split(&logical);
        if !key.is_empty() || !value.is_empty() {
            pairs.push(Pair {
                key,
                value,
                line: index + 1,
            });
        }
    }
    pairs
}

/// An odd number of backslashes at the end: the last one is not itself escaped.
fn ends_with_continuation(line: &str) -> bool {
    line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

fn split(line: &str) -> (String, String) {
    let mut chars = line.chars().peekable();
    let mut key = String::new();
    while let Some(&next) = chars.peek() {
        if next == '=' || next == ':' || next.is_whitespace() {
            break;
        }
        push_unescaped(&mut chars, &mut key);
    }
    skip_blanks(&mut chars);
    if chars.next_if(|next| matches!(next, '=' | ':')).is_some() {
        skip_blanks(&mut chars);
    }
    let mut value = String::new();
    // Blanks behind the value go, but an escaped blank was meant.
    let mut meant = 0;
    while let Some(&next) = chars.peek() {
        let escaped = next == '\\';
        push_unescaped(&mut chars, &mut value);
        if escaped || !next.is_whitespace() {
            meant = value.len();
        }
    }
    value.truncate(meant);
    (key, value)
}

fn skip_blanks(chars: &mut Peekable<Chars>) {
    while chars.next_if(|next| next.is_whitespace()).is_some() {}
}

/// Takes one character, resolving its escape.
fn push_unescaped(chars: &mut Peekable<Chars>, out: &mut String) {
    let Some(next) = chars.next() else { return };
    if next != '\\' {
        out.push(next);
        return;
    }
    match chars.next() {
        Some('n') => out.push('\n'),
        Some('t') => out.push('\t'),
        Some('r') => out.push('\r'),
        Some('f') => out.push('\u{c}'),
        Some('u') => {
            let digits: String = chars.clone().take(4).collect();
            match u32::from_str_radix(&digits, 16) {
                Ok(code) if digits.len() == 4 => {
                    for _ in 0..4 {
                        chars.next();
                    }
                    out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                _ => out.push('u'),
            }
        }
        Some(other) => out.push(other),
        None => {}
    }
}

/// One line that [`parse`] reads back as the same pair.
pub fn render(key: &str, value: &str) -> String {
    let mut line = String::with_capacity(key.len() + value.len() + 1);
    for char in key.chars() {
        if matches!(char, '=' | ':' | '#' | '!' | '\\') || char.is_whitespace() {
            push_escaped(&mut line, char);
        } else {
            line.push(char);
        }
    }
    line.push('=');
    let last = value.trim_end().len();
    let first = value.len() - value.trim_start().len();
    for (at, char) in value.char_indices() {
        let edge = char.is_whitespace() && (at < first || at >= last);
        if edge || matches!(char, '\\' | '\n' | '\r' | '\u{c}') {
            push_escaped(&mut line, char);
        } else {
            line.push(char);
        }
    }
    line
}

fn push_escaped(line: &mut String, char: char) {
    line.push('\\');
    line.push(match char {
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        '\u{c}' => 'f',
        other => other,
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text)
            .into_iter()
            .map(|pair| (pair.key, pair.value))
            .collect()
    }

    #[test]
    fn the_shapes_of_java_properties_are_read() {
        let text = "# comment\n! comment\n\n a = 1 \nb:2\nc 3\nd\n e\\=f = g=h \nlist=a,\\\n   b\nu=\\u4e2d\\t.\n";
        let expected = [
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("d", ""),
            ("e=f", "g=h"),
            ("list", "a,b"),
            ("u", "中\t."),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        assert_eq!(pairs(text), expected);
    }

    #[test]
    fn a_pair_knows_the_line_of_its_key() {
        let lines: Vec<_> = parse("\n#x\na=1\\\n  2\nb=2\r\nc=3")
            .iter()
            .map(|pair| pair.line)
            .collect();
        assert_eq!(lines, [3, 5, 6]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in any::<String>()) {
            parse(&text);
        }

        #[test]
        fn what_is_rendered_is_read_back(key in "\\PC{1,12}", value in any::<String>()) {
            prop_assume!(!key.starts_with('\u{feff}'));
            // A line feed inside a value is escaped, but other separators of `str::lines` do not exist.
            prop_assert_eq!(pairs(&render(&key, &value)), vec![(key, value)]);
        }
    }
}
