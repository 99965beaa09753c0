//! SQL92 filters: the text of a subscription becomes a [`CompiledFilter`], which is run over a stored message's properties.
//!
//! Rules and types are those of the original, oddities included: every property is text; it is read as a whole number
//! beside a whole number and as a fraction beside a fraction, and if it is none the message is not wanted, whatever stands
//! around the comparison. Deliberate differences: text behind a whole expression is refused (the original ignores it), a
//! last `--` comment needs no line end, `0L` is a number, and there are bounds on length, nesting and steps.
//! Absent: hexadecimal fractions and digits other than ASCII in properties.
//!
//! Source: `filter/.../parser/SelectorParser.jj`, `filter/.../expression/*`, `ExpressionMessageFilter`.

mod lexer;
mod parser;
mod program;
#[cfg(test)]
mod tests;

pub use program::Verdict;

use program::Program;

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SQL92 expression, column {column}: {reason}")]
pub struct SqlError {
    /// Of the first character that does not fit, counted in characters from 1.
    pub column: usize,
    /// What was expected and what is there instead.
    pub reason: String,
}

/// A filter that is ready to run. Two are equal if their texts are.
#[derive(Debug)]
pub struct CompiledFilter {
    text: Box<str>,
    program: Program,
}

impl CompiledFilter {
    /// Compiles an expression.
    pub fn compile(text: &str) -> Result<Self, SqlError> {
        Ok(Self {
            text: text.into(),
            program: parser::parse(text)?,
        })
    }

    /// The expression.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a message with these properties (see [`crate::wire::properties`]) is wanted.
    pub fn matches(&self, properties: &[u8]) -> bool {
        self.program.run(properties) == Verdict::True
    }

    /// The same with all that can come of it.
    pub fn verdict(&self, properties: &[u8]) -> Verdict {
        self.program.run(properties)
    }

    /// Bytes that one run over properties of this length may look at: a bound on its work.
    pub fn work_bytes(&self, properties_bytes: usize) -> usize {
        self.program.work_bytes(properties_bytes)
    }
}

impl PartialEq for CompiledFilter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CompiledFilter {}
