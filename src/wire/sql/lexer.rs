//! Text to tokens, one at a time. Positions are bytes; an error counts characters.

use super::SqlError;

/// One word of an expression. Keywords are in any case, names are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    End,
    Name(&'a str),
    /// Digits of a whole number, without its `L`.
    Whole(&'a str),
    Fraction(&'a str),
    /// What is between the quotes, each `''` still two.
    Text(&'a str),
    Not,
    And,
    Or,
    Between,
    In,
    True,
    False,
    Null,
    Is,
    Contains,
    StartsWith,
    EndsWith,
    Equal,
    NotEqual,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    Open,
    Close,
    Comma,
    Plus,
    Minus,
}

const KEYWORDS: [(&str, Token<'static>); 12] = [
    ("NOT", Token::Not),
    ("AND", Token::And),
    ("OR", Token::Or),
    ("BETWEEN", Token::Between),
    ("IN", Token::In),
    ("TRUE", Token::True),
    ("FALSE", Token::False),
    ("NULL", Token::Null),
    ("IS", Token::Is),
    ("CONTAINS", Token::Contains),
    ("STARTSWITH", Token::StartsWith),
    ("ENDSWITH", Token::EndsWith),
];

/// Longest first.
const SIGNS: [(&str, Token<'static>); 11] = [
    ("<>", Token::NotEqual),
    (">=", Token::GreaterEqual),
    ("<=", Token::LessEqual),
    ("=", Token::Equal),
    (">", Token::Greater),
    ("<", Token::Less),
    ("(", Token::Open),
    (")", Token::Close),
    (",", Token::Comma),
    ("+", Token::Plus),
    ("-", Token::Minus),
];

pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// An error at a byte position.
    pub fn error(&self, at: usize, reason: impl Into<String>) -> SqlError {
        let before = self.text.get(..at).unwrap_or(self.text);
        SqlError {
            column: before.chars().count() + 1,
            reason: reason.into(),
        }
    }

    /// What stands at a byte position, for an error: the rest of the word there.
    pub fn shown(&self, at: usize) -> String {
        const SHOWN_CHARS: usize = 20;
        let rest = self.text.get(at..).unwrap_or_default().trim_end();
        if rest.is_empty() {
            return "the end of the expression".into();
        }
        let word = rest.split_ascii_whitespace().next().unwrap_or(rest);
        let mut shown: String = word.chars().take(SHOWN_CHARS).collect();
        if shown.len() < word.len() {
            shown.push('…');
        }
        format!("`{shown}`")
    }

    /// Whether a byte position starts two minus signs: a comment, if nothing can follow.
    pub fn is_dashes(&self, at: usize) -> bool {
        self.text
            .get(at..)
            .is_some_and(|rest| rest.starts_with("--"))
    }

    /// The next token and the byte position of its start.
    pub fn next(&mut self) -> Result<(usize, Token<'a>), SqlError> {
        self.skip_blanks()?;
        let start = self.at;
        let rest = &self.text[start..];
        let Some(first) = rest.bytes().next() else {
            return Ok((start, Token::End));
        };
        let (bytes, token) = match first {
            b'\'' => self.quoted(rest)?,
            b'0'..=b'9' | b'.' => self.number(rest)?,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' => {
                let bytes = span(rest, |byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
                });
                let word = &rest[..bytes];
                let keyword = KEYWORDS
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(word));
                let token = keyword.map_or(Token::Name(word), |(_, token)| token.clone());
                (bytes, token)
            }
            _ => {
                let sign = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign));
                let Some((sign, token)) = sign else {
                    let reason = format!("{} has no meaning here", self.shown(start));
                    return Err(self.error(start, reason));
                };
                (sign.len(), token.clone())
            }
        };
        self.at += bytes;
        Ok((start, token))
    }

    fn skip_blanks(&mut self) -> Result<(), SqlError> {
        loop {
            let rest = &self.text[self.at..];
            let blanks = span(rest, |byte| {
                matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0C')
            });
            if blanks > 0 {
                self.at += blanks;
            } else if rest.starts_with("--") {
                // Without an end of line behind them these are two signs.
                match rest.find(['\n', '\r']) {
                    Some(end) => self.at += end,
                    None => return Ok(()),
                }
            } else if let Some(comment) = rest.strip_prefix("/*") {
                match comment.find("*/") {
                    Some(end) => self.at += end + 4,
                    None => {
                        return Err(self.error(self.at, "the comment has no end: expected `*/`"));
                    }
                }
            } else {
                return Ok(());
            }
        }
    }

    fn quoted(&self, rest: &'a str) -> Result<(usize, Token<'a>), SqlError> {
        let bytes = rest.as_bytes();
        let mut at = 1;
        while at < bytes.len() {
            if bytes[at] != b'\'' {
                at += 1;
            } else if bytes.get(at + 1) == Some(&b'\'') {
                at += 2;
            } else {
                return Ok((at + 1, Token::Text(&rest[1..at])));
            }
        }
        Err(self.error(self.at, "the text has no end: expected a closing quote"))
    }

    /// `5`, `5L`, `5.5`, `5.`, `.5`, each fraction also with an exponent.
    fn number(&self, rest: &'a str) -> Result<(usize, Token<'a>), SqlError> {
        let digits = |at: usize| span(&rest[at..], |byte| byte.is_ascii_digit());
        let exponent = |at: usize| {
            let Some(behind) = rest[at..].strip_prefix(['e', 'E']) else {
                return 0;
            };
            let sign = usize::from(behind.starts_with(['+', '-']));
            match digits(at + 1 + sign) {
                0 => 0,
                count => 1 + sign + count,
            }
        };
        let whole = digits(0);
        if rest[whole..].starts_with('.') {
            let fraction = digits(whole + 1);
            if whole + fraction == 0 {
                return Err(self.error(self.at, "`.` has no meaning here: expected a number"));
            }
            let end = whole + 1 + fraction;
            let end = end + exponent(end);
            return Ok((end, Token::Fraction(&rest[..end])));
        }
        match exponent(whole) {
            0 => {}
            bytes => {
                let end = whole + bytes;
                return Ok((end, Token::Fraction(&rest[..end])));
            }
        }
        if whole > 1 && rest.starts_with('0') {
            return Err(self.error(self.at, "a whole number has no zeros in front"));
        }
        let suffix = usize::from(rest[whole..].starts_with(['l', 'L']));
        Ok((whole + suffix, Token::Whole(&rest[..whole])))
    }
}

/// How many bytes at the start are of a kind.
fn span(text: &str, kind: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|&byte| kind(byte)).count()
}
