//! A compiled filter as steps over a stack, and how they run over the properties of one message.
//!
//! Never recurses, and looks at the properties once to find the values that it needs. A value that cannot be compared as
//! the other side asks ends the run: in the original that is an exception, which no NOT and no OR around it sees.

use std::cmp::Ordering;

use smallvec::SmallVec;

use crate::wire::properties;

/// What comes of a filter and a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    True,
    False,
    /// SQL's NULL: something that it needs is missing.
    Unknown,
    /// Values that cannot be compared. Not wanted either.
    Mismatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Compare {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::LessEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterEqual => order.is_ge(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextTest {
    Contains,
    StartsWith,
    EndsWith,
}

/// One step. Numbers are indices into the program; a jump's is the step to go on with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Property(u16),
    Text(u16),
    Int(i32),
    Long(i64),
    Double(f64),
    Truth(bool),
    Null,
    Negate,
    Not,
    /// A property alone as a condition: unknown if it is missing, else FALSE, because it is a text.
    Cast,
    Equal,
    Compare(Compare),
    IsNull {
        not: bool,
    },
    Test {
        test: TextTest,
        not: bool,
        text: u16,
    },
    In {
        not: bool,
        list: u16,
    },
    AndJump(u16),
    And,
    OrJump(u16),
    Or,
    /// Takes the low bound; either decides and jumps, or leaves the value and what came of it.
    BetweenLow {
        not: bool,
        end: u16,
    },
    BetweenHigh {
        not: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Null,
    Truth(bool),
    Text(&'a str),
    Int(i32),
    Long(i64),
    Double(f64),
}

/// Ends a run.
struct Mismatch;

type Truth = Option<bool>;

impl Value<'_> {
    fn of(truth: Truth) -> Self {
        truth.map_or(Self::Null, Self::Truth)
    }

    /// As a condition; the parser sees to it that there is nothing else.
    fn truth(self) -> Truth {
        match self {
            Self::Truth(truth) => Some(truth),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Program {
    pub steps: Vec<Step>,
    /// Properties that it needs, sorted by [`Program::finish`].
    names: Vec<Box<str>>,
    texts: Vec<Box<str>>,
    /// Each sorted.
    lists: Vec<Box<[Box<str>]>>,
}

impl Program {
    pub fn add_name(&mut self, name: &str) -> u16 {
        let known = self.names.iter().position(|known| **known == *name);
        known.unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        }) as u16
    }

    pub fn add_text(&mut self, text: Box<str>) -> u16 {
        self.texts.push(text);
        (self.texts.len() - 1) as u16
    }

    pub fn add_list(&mut self, mut texts: Vec<Box<str>>) -> u16 {
        texts.sort_unstable();
        texts.dedup();
        self.lists.push(texts.into());
        (self.lists.len() - 1) as u16
    }

    /// Sorts the names, so that a property finds its place by bisection.
    pub fn finish(&mut self) {
        let mut sorted = self.names.clone();
        sorted.sort_unstable();
        for step in &mut self.steps {
            if let Step::Property(index) = step {
                let name = &self.names[usize::from(*index)];
                *index = sorted.partition_point(|other| other < name) as u16;
            }
        }
        self.names = sorted;
    }

    /// See [`super::CompiledFilter::work_bytes`]: every step that takes a property may read all of it.
    pub fn work_bytes(&self, properties_bytes: usize) -> usize {
        let readers = self
            .steps
            .iter()
            .filter(|step| matches!(step, Step::Property(_)))
            .count();
        properties_bytes * (1 + readers) + self.steps.len()
    }

    pub fn run(&self, properties: &[u8]) -> Verdict {
        match self.evaluate(properties) {
            Ok(Some(true)) => Verdict::True,
            Ok(Some(false)) => Verdict::False,
            Ok(None) => Verdict::Unknown,
            Err(Mismatch) => Verdict::Mismatch,
        }
    }

    /// Values of the names, the last one of each as in a Java map.
    fn values<'a>(&self, properties: &'a [u8]) -> SmallVec<[Option<&'a str>; 8]> {
        if self.names.is_empty() {
            return SmallVec::new();
        }
        let mut values: SmallVec<[Option<&[u8]>; 8]> = SmallVec::from_elem(None, self.names.len());
        for (name, value) in properties::iter(properties) {
            let found = self
                .names
                .binary_search_by(|known| known.as_bytes().cmp(name));
            if let Ok(index) = found {
                values[index] = Some(value);
            }
        }
        values
            .into_iter()
            .map(|value| value.and_then(|value| std::str::from_utf8(value).ok()))
            .collect()
    }

    fn evaluate(&self, properties: &[u8]) -> Result<Truth, Mismatch> {
        let values = self.values(properties);
        let mut stack = Stack(SmallVec::new());
        let mut at = 0;
        while let Some(&step) = self.steps.get(at) {
            at += 1;
            let value = match step {
                Step::Property(index) => {
                    values[usize::from(index)].map_or(Value::Null, Value::Text)
                }
                Step::Text(index) => Value::Text(&self.texts[usize::from(index)]),
                Step::Int(number) => Value::Int(number),
                Step::Long(number) => Value::Long(number),
                Step::Double(number) => Value::Double(number),
                Step::Truth(truth) => Value::Truth(truth),
                Step::Null => Value::Null,
                Step::Negate => match stack.pop() {
                    Value::Int(number) => Value::Int(number.wrapping_neg()),
                    Value::Long(number) => Value::Long(number.wrapping_neg()),
                    Value::Double(number) => Value::Double(-number),
                    Value::Null | Value::Truth(_) | Value::Text(_) => Value::Null,
                },
                Step::Not => Value::of(stack.pop().truth().map(|truth| !truth)),
                Step::Cast => match stack.pop() {
                    Value::Null => Value::Null,
                    Value::Truth(truth) => Value::Truth(truth),
                    _ => Value::Truth(false),
                },
                Step::Equal => {
                    let right = stack.pop();
                    Value::of(equal(stack.pop(), right)?)
                }
                Step::Compare(compare) => {
                    let right = stack.pop();
                    Value::of(ordered(compare, stack.pop(), right)?)
                }
                Step::IsNull { not } => Value::Truth(matches!(stack.pop(), Value::Null) != not),
                Step::Test { test, not, text } => {
                    let wanted = &*self.texts[usize::from(text)];
                    Value::Truth(tested(test, not, stack.pop(), wanted))
                }
                Step::In { not, list } => match stack.pop() {
                    Value::Text(text) => {
                        let list = &self.lists[usize::from(list)];
                        let found = list.binary_search_by(|known| (**known).cmp(text)).is_ok();
                        Value::Truth(found != not)
                    }
                    _ => Value::Null,
                },
                Step::AndJump(end) | Step::OrJump(end) => {
                    let decides = matches!(step, Step::OrJump(_));
                    let left = stack.pop();
                    if left.truth() == Some(decides) {
                        at = usize::from(end);
                    }
                    left
                }
                Step::And => {
                    let right = stack.pop().truth();
                    Value::of(and(stack.pop().truth(), right))
                }
                Step::Or => {
                    let right = stack.pop().truth();
                    Value::of(or(stack.pop().truth(), right))
                }
                Step::BetweenLow { not, end } => {
                    let low = stack.pop();
                    let value = stack.pop();
                    let compare = if not {
                        Compare::Less
                    } else {
                        Compare::GreaterEqual
                    };
                    let truth = ordered(compare, value, low)?;
                    if truth == Some(not) {
                        at = usize::from(end);
                    } else {
                        stack.0.push(value);
                    }
                    Value::of(truth)
                }
                Step::BetweenHigh { not } => {
                    let high = stack.pop();
                    let low_truth = stack.pop().truth();
                    let value = stack.pop();
                    Value::of(if not {
                        or(low_truth, ordered(Compare::Greater, value, high)?)
                    } else {
                        and(low_truth, ordered(Compare::LessEqual, value, high)?)
                    })
                }
            };
            stack.0.push(value);
        }
        Ok(stack.pop().truth())
    }
}

/// The values that wait for a step. The parser emits no step without its operands.
struct Stack<'a>(SmallVec<[Value<'a>; 16]>);

impl<'a> Stack<'a> {
    fn pop(&mut self) -> Value<'a> {
        self.0.pop().unwrap_or(Value::Null)
    }
}

fn and(left: Truth, right: Truth) -> Truth {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn or(left: Truth, right: Truth) -> Truth {
    match (left, right) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

/// `=`: not the same from both sides, if one of them is missing.
fn equal(left: Value<'_>, right: Value<'_>) -> Result<Truth, Mismatch> {
    match (left, right) {
        (Value::Null, Value::Null) => Ok(Some(true)),
        (Value::Null, _) => Ok(None),
        (_, Value::Null) => Ok(Some(false)),
        _ => Ok(Some(compare(left, right)?.is_eq())),
    }
}

/// `<`, `<=`, `>`, `>=`: of two texts only if both are numbers.
fn ordered(wanted: Compare, left: Value<'_>, right: Value<'_>) -> Result<Truth, Mismatch> {
    let order = match (left, right) {
        (Value::Null, _) | (_, Value::Null) => return Ok(None),
        (Value::Text(left), Value::Text(right)) => {
            compare_doubles(java_double(left)?, java_double(right)?)
        }
        _ => compare(left, right)?,
    };
    Ok(Some(wanted.holds(order)))
}

/// `ComparisonExpression.__compare`: a text is read as what the other side is.
fn compare(left: Value<'_>, right: Value<'_>) -> Result<Ordering, Mismatch> {
    use Value::{Double, Int, Long, Null, Text, Truth};
    Ok(match (left, right) {
        (Text(left), Text(right)) => left.cmp(right),
        (Truth(left), Truth(right)) => left.cmp(&right),
        (Text(left), Truth(right)) => left.eq_ignore_ascii_case("true").cmp(&right),
        // A wrong cast in the original.
        (Truth(_), Text(_)) => return Err(Mismatch),
        (Int(left), Int(right)) => left.cmp(&right),
        (Int(left), Long(right)) => i64::from(left).cmp(&right),
        (Long(left), Int(right)) => left.cmp(&i64::from(right)),
        (Long(left), Long(right)) => left.cmp(&right),
        (Int(left), Double(right)) => compare_doubles(left.into(), right),
        (Double(left), Int(right)) => compare_doubles(left, right.into()),
        (Long(left), Double(right)) => compare_doubles(left as f64, right),
        (Double(left), Long(right)) => compare_doubles(left, right as f64),
        (Double(left), Double(right)) => compare_doubles(left, right),
        (Text(left), Int(right)) => parsed::<i32>(left)?.cmp(&right),
        (Int(left), Text(right)) => left.cmp(&parsed(right)?),
        (Text(left), Long(right)) => parsed::<i64>(left)?.cmp(&right),
        (Long(left), Text(right)) => left.cmp(&parsed(right)?),
        (Text(left), Double(right)) => compare_doubles(java_double(left)?, right),
        (Double(left), Text(right)) => compare_doubles(left, java_double(right)?),
        (Truth(_), _) | (_, Truth(_)) | (Null, _) | (_, Null) => Ordering::Less,
    })
}

/// CONTAINS and its like never give unknown: without a text, on either side, they and their negations are FALSE.
fn tested(test: TextTest, not: bool, value: Value<'_>, wanted: &str) -> bool {
    let Value::Text(text) = value else {
        return false;
    };
    if wanted.is_empty() {
        return false;
    }
    let found = match test {
        TextTest::Contains => text.contains(wanted),
        TextTest::StartsWith => text.starts_with(wanted),
        TextTest::EndsWith => text.ends_with(wanted),
    };
    found != not
}

/// Java's `Double.compareTo`: -0.0 is below 0.0, NaN equals itself and is above all.
fn compare_doubles(left: f64, right: f64) -> Ordering {
    match (left.is_nan(), right.is_nan()) {
        (false, false) => left.total_cmp(&right),
        (left, right) => left.cmp(&right),
    }
}

/// Java's `Integer.valueOf` and `Long.valueOf`: a sign and digits, no blanks.
fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, Mismatch> {
    text.parse().map_err(|_not_a_number| Mismatch)
}

/// Java's `Double.valueOf`: blanks around, a sign, NaN and Infinity, a letter for the type at the end.
fn java_double(text: &str) -> Result<f64, Mismatch> {
    let text = text.trim_matches(|c: char| c <= ' ');
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    match unsigned {
        "NaN" => return Ok(f64::NAN),
        "Infinity" if text.starts_with('-') => return Ok(f64::NEG_INFINITY),
        "Infinity" => return Ok(f64::INFINITY),
        _ => {}
    }
    // Rust knows other words for these; what starts like a number has none.
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(Mismatch);
    }
    let digits = text.strip_suffix(['f', 'F', 'd', 'D']).unwrap_or(text);
    parsed(digits)
}
