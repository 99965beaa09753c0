//! Tokens to a program, in one pass: operator precedence parsing that emits each step when its operands are known.
//!
//! Precedence, low to high: OR, AND, equality (`= <> IS NULL`), comparison (the rest), then `NOT + -`. Kinds are checked
//! here as far as the original does when it builds its tree; the rest is a matter of each message.

use super::SqlError;
use super::lexer::{Lexer, Token};
use super::program::{Compare, Program, Step, TextTest};
use crate::base::limits::{SQL_BYTES_MAX, SQL_DEPTH_MAX, SQL_STEPS_MAX};

/// How tightly an operator holds its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Or,
    And,
    Equality,
    Comparison,
    Unary,
}

impl Level {
    fn above(self) -> Self {
        match self {
            Self::Or => Self::And,
            Self::And => Self::Equality,
            Self::Equality => Self::Comparison,
            Self::Comparison | Self::Unary => Self::Unary,
        }
    }
}

/// What is known of a value before there is a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Property,
    Whole(i64),
    Fraction(f64),
    Text,
    /// TRUE and FALSE.
    Truth,
    Null,
    /// The result of an operator that gives TRUE, FALSE or unknown.
    Condition,
    /// A negated value.
    Negated,
}

impl Kind {
    fn is_constant(self) -> bool {
        !matches!(self, Self::Property | Self::Condition | Self::Negated)
    }

    fn is_boolean(self) -> bool {
        matches!(self, Self::Truth | Self::Null | Self::Condition)
    }
}

/// A value whose steps are emitted.
#[derive(Clone, Copy, Debug)]
struct Operand {
    kind: Kind,
    /// Byte position of its start.
    at: usize,
}

pub(super) fn parse(text: &str) -> Result<Program, SqlError> {
    let mut lexer = Lexer::new(text);
    if text.len() > SQL_BYTES_MAX {
        let reason = format!(
            "the expression has {} bytes, the limit is {SQL_BYTES_MAX}",
            text.len()
        );
        return Err(lexer.error(0, reason));
    }
    let (at, token) = lexer.next()?;
    let mut parser = Parser {
        lexer,
        at,
        token,
        depth: 0,
        program: Program::default(),
    };
    let whole = parser.expression(Level::Or)?;
    let comment = parser.token == Token::Minus && parser.lexer.is_dashes(parser.at);
    if parser.token != Token::End && !comment {
        return Err(parser.expected("an operator or the end of the expression"));
    }
    parser.condition(whole)?;
    parser.program.finish();
    Ok(parser.program)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token and its byte position.
    at: usize,
    token: Token<'a>,
    depth: usize,
    program: Program,
}

impl<'a> Parser<'a> {
    fn advance(&mut self) -> Result<Token<'a>, SqlError> {
        let (at, token) = self.lexer.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn expected(&self, what: &str) -> SqlError {
        let found = self.lexer.shown(self.at);
        self.lexer
            .error(self.at, format!("expected {what}, found {found}"))
    }

    fn take(&mut self, token: Token<'_>, what: &str) -> Result<(), SqlError> {
        if self.token != token {
            return Err(self.expected(what));
        }
        self.advance().map(drop)
    }

    fn emit(&mut self, step: Step) -> Result<(), SqlError> {
        if self.program.steps.len() >= SQL_STEPS_MAX {
            let reason = format!("the expression has more than {SQL_STEPS_MAX} operations");
            return Err(self.lexer.error(self.at, reason));
        }
        self.program.steps.push(step);
        Ok(())
    }

    fn expression(&mut self, lowest: Level) -> Result<Operand, SqlError> {
        let mut left = self.unary()?;
        // An operator of a lower level closes the operand: none of a higher level may follow it.
        let mut highest = Level::Comparison;
        loop {
            let level = match self.token {
                Token::Or => Level::Or,
                Token::And => Level::And,
                Token::Equal | Token::NotEqual | Token::Is => Level::Equality,
                Token::Greater
                | Token::GreaterEqual
                | Token::Less
                | Token::LessEqual
                | Token::Contains
                | Token::StartsWith
                | Token::EndsWith
                | Token::Between
                | Token::In
                | Token::Not => Level::Comparison,
                _ => return Ok(left),
            };
            if level < lowest || level > highest {
                return Ok(left);
            }
            highest = level;
            let kind = self.operator(left, level)?;
            left = Operand { kind, at: left.at };
        }
    }

    /// One operator behind its left operand.
    fn operator(&mut self, left: Operand, level: Level) -> Result<Kind, SqlError> {
        match self.advance()? {
            Token::Or => self.junction(left, level, Step::OrJump, Step::Or),
            Token::And => self.junction(left, level, Step::AndJump, Step::And),
            Token::Equal => self.equality(left, level, false),
            Token::NotEqual => self.equality(left, level, true),
            Token::Is => {
                let not = self.token == Token::Not;
                if not {
                    self.advance()?;
                }
                self.take(Token::Null, if not { "NULL" } else { "NULL or NOT NULL" })?;
                self.emit(Step::IsNull { not })?;
                Ok(Kind::Condition)
            }
            Token::Greater => self.comparison(left, level, Compare::Greater),
            Token::GreaterEqual => self.comparison(left, level, Compare::GreaterEqual),
            Token::Less => self.comparison(left, level, Compare::Less),
            Token::LessEqual => self.comparison(left, level, Compare::LessEqual),
            Token::Not => {
                let word = self.token.clone();
                if !matches!(
                    word,
                    Token::Contains
                        | Token::StartsWith
                        | Token::EndsWith
                        | Token::Between
                        | Token::In
                ) {
                    return Err(
                        self.expected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH behind NOT")
                    );
                }
                self.advance()?;
                self.word_operator(left, word, true)
            }
            word => self.word_operator(left, word, false),
        }
    }

    fn word_operator(
        &mut self,
        left: Operand,
        word: Token<'_>,
        not: bool,
    ) -> Result<Kind, SqlError> {
        match word {
            Token::Between => return self.between(left, not),
            Token::In => return self.list(left, not),
            _ => {}
        }
        let test = match word {
            Token::Contains => TextTest::Contains,
            Token::StartsWith => TextTest::StartsWith,
            _ => TextTest::EndsWith,
        };
        let text = self.text()?;
        let text = self.program.add_text(text);
        self.emit(Step::Test { test, not, text })?;
        Ok(Kind::Condition)
    }

    /// AND and OR, which leave out their right side if the left one decides.
    fn junction(
        &mut self,
        left: Operand,
        level: Level,
        jump: fn(u16) -> Step,
        join: Step,
    ) -> Result<Kind, SqlError> {
        self.condition(left)?;
        let hole = self.program.steps.len();
        self.emit(jump(0))?;
        let right = self.expression(level.above())?;
        self.condition(right)?;
        self.emit(join)?;
        self.program.steps[hole] = jump(self.program.steps.len() as u16);
        Ok(Kind::Condition)
    }

    fn equality(&mut self, left: Operand, level: Level, not: bool) -> Result<Kind, SqlError> {
        let right = self.expression(level.above())?;
        for side in [left, right] {
            if side.kind == Kind::Null {
                return Err(self
                    .lexer
                    .error(side.at, "NULL equals nothing: write IS NULL or IS NOT NULL"));
            }
        }
        if left.kind == Kind::Truth && right.kind.is_constant() && right.kind != Kind::Truth {
            let reason = "TRUE and FALSE cannot be compared with a number or a text";
            return Err(self.lexer.error(left.at, reason));
        }
        self.emit(Step::Equal)?;
        if not {
            self.emit(Step::Not)?;
        }
        Ok(Kind::Condition)
    }

    fn comparison(
        &mut self,
        left: Operand,
        level: Level,
        compare: Compare,
    ) -> Result<Kind, SqlError> {
        let right = self.expression(level.above())?;
        self.comparable(left)?;
        self.comparable(right)?;
        self.emit(Step::Compare(compare))?;
        Ok(Kind::Condition)
    }

    /// Only numbers and properties have an order.
    fn comparable(&self, side: Operand) -> Result<(), SqlError> {
        match side.kind {
            Kind::Property | Kind::Whole(_) | Kind::Fraction(_) | Kind::Negated => Ok(()),
            Kind::Text | Kind::Truth | Kind::Null | Kind::Condition => {
                let found = self.lexer.shown(side.at);
                Err(self.lexer.error(
                    side.at,
                    format!("expected a number or a property, which have an order, found {found}"),
                ))
            }
        }
    }

    fn between(&mut self, value: Operand, not: bool) -> Result<Kind, SqlError> {
        self.comparable(value)?;
        let low = self.expression(Level::Unary)?;
        self.comparable(low)?;
        let hole = self.program.steps.len();
        self.emit(Step::BetweenLow { not, end: 0 })?;
        self.take(Token::And, "AND between the bounds of BETWEEN")?;
        let high = self.expression(Level::Unary)?;
        self.comparable(high)?;
        let empty = match (low.kind, high.kind) {
            (Kind::Whole(low), Kind::Whole(high)) => high < low,
            (Kind::Whole(low), Kind::Fraction(high)) => high < low as f64,
            (Kind::Fraction(low), Kind::Whole(high)) => (high as f64) < low,
            (Kind::Fraction(low), Kind::Fraction(high)) => high < low,
            _ => false,
        };
        if empty && !not {
            let reason = "the first bound of BETWEEN is greater than the second: nothing matches";
            return Err(self.lexer.error(low.at, reason));
        }
        self.emit(Step::BetweenHigh { not })?;
        let end = self.program.steps.len() as u16;
        self.program.steps[hole] = Step::BetweenLow { not, end };
        Ok(Kind::Condition)
    }

    fn list(&mut self, left: Operand, not: bool) -> Result<Kind, SqlError> {
        if left.kind != Kind::Property {
            let found = self.lexer.shown(left.at);
            let reason = format!("expected a property in front of IN, found {found}");
            return Err(self.lexer.error(left.at, reason));
        }
        self.take(Token::Open, "`(` and a list of texts behind IN")?;
        let mut texts = vec![self.text()?];
        while self.token == Token::Comma {
            self.advance()?;
            texts.push(self.text()?);
        }
        self.take(Token::Close, "`,` or `)`")?;
        let list = self.program.add_list(texts);
        self.emit(Step::In { not, list })?;
        Ok(Kind::Condition)
    }

    fn text(&mut self) -> Result<Box<str>, SqlError> {
        let Token::Text(raw) = self.token else {
            return Err(self.expected("a text in single quotes"));
        };
        self.advance()?;
        Ok(unescaped(raw))
    }

    /// Makes the value just emitted a condition, if it can be one.
    fn condition(&mut self, value: Operand) -> Result<(), SqlError> {
        if value.kind.is_boolean() {
            return Ok(());
        }
        if value.kind == Kind::Property {
            return self.emit(Step::Cast);
        }
        let found = self.lexer.shown(value.at);
        Err(self.lexer.error(
            value.at,
            format!("expected a condition such as `a = 1`, found the value {found}"),
        ))
    }

    fn unary(&mut self) -> Result<Operand, SqlError> {
        if self.depth == SQL_DEPTH_MAX {
            let reason = format!("the expression is nested more than {SQL_DEPTH_MAX} deep");
            return Err(self.lexer.error(self.at, reason));
        }
        self.depth += 1;
        let operand = self.unary_within()?;
        self.depth -= 1;
        Ok(operand)
    }

    fn unary_within(&mut self) -> Result<Operand, SqlError> {
        let at = self.at;
        let kind = match self.token {
            Token::Plus => {
                self.advance()?;
                self.unary()?.kind
            }
            Token::Minus => {
                self.advance()?;
                self.unary()?;
                self.emit(Step::Negate)?;
                Kind::Negated
            }
            Token::Not => {
                self.advance()?;
                let operand = self.unary()?;
                self.condition(operand)?;
                self.emit(Step::Not)?;
                Kind::Condition
            }
            Token::Open => {
                self.advance()?;
                let inner = self.expression(Level::Or)?;
                self.take(Token::Close, "an operator or `)`")?;
                inner.kind
            }
            _ => self.primary()?,
        };
        Ok(Operand { kind, at })
    }

    fn primary(&mut self) -> Result<Kind, SqlError> {
        let (kind, step) = match self.token {
            Token::Name(name) => (Kind::Property, Step::Property(self.program.add_name(name))),
            Token::Text(raw) => {
                let text = self.program.add_text(unescaped(raw));
                (Kind::Text, Step::Text(text))
            }
            Token::Whole(digits) => {
                let Ok(number) = digits.parse::<i64>() else {
                    let reason = format!("a whole number is at most {}", i64::MAX);
                    return Err(self.lexer.error(self.at, reason));
                };
                let step = match i32::try_from(number) {
                    Ok(number) => Step::Int(number),
                    Err(_) => Step::Long(number),
                };
                (Kind::Whole(number), step)
            }
            Token::Fraction(text) => match text.parse::<f64>() {
                // As the original, which has no way to write a fraction of zero.
                Ok(number) if number > 0.0 && number.is_finite() => {
                    (Kind::Fraction(number), Step::Double(number))
                }
                _ => {
                    let reason = format!(
                        "a number with a fraction or an exponent is 4.9E-324 to {:E}; zero is written 0",
                        f64::MAX
                    );
                    return Err(self.lexer.error(self.at, reason));
                }
            },
            Token::True => (Kind::Truth, Step::Truth(true)),
            Token::False => (Kind::Truth, Step::Truth(false)),
            Token::Null => (Kind::Null, Step::Null),
            _ => {
                return Err(self.expected(
                    "a value: a property, a number, a text in single quotes, TRUE, FALSE, NULL or `(`",
                ));
            }
        };
        self.advance()?;
        self.emit(step)?;
        Ok(kind)
    }
}

fn unescaped(raw: &str) -> Box<str> {
    raw.replace("''", "'").into()
}
