//! What a command prints: tables for people, JSON for scripts, from the same rows.
//!
//! A column's name is the JSON key. If it ends in `Timestamp`, the value is in milliseconds since 1970, and a table shows
//! the date (UTC). Long answers are printed row by row, so a JSON answer of several rows is one object a line.

use std::io::{ErrorKind, IsTerminal, Write};

use serde_json::{Map, Value};

use crate::admin::args::{Confirm, Format};
use crate::admin::{AdminError, Outcome};
use crate::base::civil::readable_time;

/// Columns between which a table has this much space.
const GAP: &str = "  ";
/// Characters of a cell; what is longer ends in `...`. JSON is never cut.
const CELL_CHARS_MAX: usize = 96;

/// Prints in the format that was asked for.
pub struct Output {
    format: Format,
}

/// Rows under named columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    pub fn new(columns: &'static [&'static str]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// One more row; `Value::Null` is an empty cell.
    pub fn push<const N: usize>(&mut self, row: [Value; N]) {
        assert_eq!(N, self.columns.len(), "a cell for each column");
        self.rows.push(row.into());
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows as JSON objects.
    pub fn objects(&self) -> impl Iterator<Item = Value> {
        self.rows.iter().map(|row| {
            let members = self.columns.iter().zip(row);
            let members: Map<String, Value> = members
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            Value::Object(members)
        })
    }

    /// The lines of the table, the heads first.
    pub fn lines(&self) -> Vec<String> {
        let mut cells: Vec<Vec<String>> =
            vec![self.columns.iter().map(|name| head(name)).collect()];
        for row in &self.rows {
            let row = self.columns.iter().zip(row);
            cells.push(row.map(|(name, value)| cell(name, value)).collect());
        }
        let is_number = |column: usize| {
            let mut values = self.rows.iter().map(|row| &row[column]);
            !self.columns[column].ends_with("Timestamp")
                && !self.rows.is_empty()
                && values.all(|value| value.is_number() || value.is_null())
        };
        let widths: Vec<(usize, bool)> = (0..self.columns.len())
            .map(|column| {
                let width = cells.iter().map(|row| row[column].chars().count()).max();
                (width.unwrap_or(0), is_number(column))
            })
            .collect();
        cells
            .into_iter()
            .map(|row| {
                let padded: Vec<String> = row
                    .into_iter()
                    .zip(&widths)
                    .map(|(text, &(width, is_number))| match is_number {
                        true => format!("{text:>width$}"),
                        false => format!("{text:<width$}"),
                    })
                    .collect();
                padded.join(GAP).trim_end().to_owned()
            })
            .collect()
    }
}

/// `minOffset` is `MIN OFFSET`, `storeTimestamp` is `STORE TIME`.
fn head(name: &str) -> String {
    let name = match name.strip_suffix("Timestamp") {
        Some(front) => format!("{front}Time"),
        None => name.to_owned(),
    };
    let mut head = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !head.is_empty() {
            head.push(' ');
        }
        head.push(character.to_ascii_uppercase());
    }
    head
}

fn cell(name: &str, value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(ms) if name.ends_with("Timestamp") => match ms.as_u64() {
            Some(ms) if ms > 0 => readable_time(ms),
            _ => "-".to_owned(),
        },
        Value::Array(values) => {
            let parts: Vec<String> = values.iter().map(|value| cell("", value)).collect();
            parts.join(", ")
        }
        other => other.to_string(),
    };
    // What was stored may hold anything; a terminal must not obey it.
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if clean.chars().count() <= CELL_CHARS_MAX {
        return clean;
    }
    let front: String = clean.chars().take(CELL_CHARS_MAX - 3).collect();
    format!("{front}...")
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A list: one table, or one JSON array.
    pub fn list(&self, table: &Table) {
        if self.is_json() {
            line(&Value::Array(table.objects().collect()).to_string());
            return;
        }
        for text in table.lines() {
            line(&text);
        }
    }

    /// Several parts of one thing: a table each under its title, or one JSON object of them. A part that is no table is
    /// printed as `name value` lines.
    pub fn parts(&self, parts: &[(&str, Part)]) {
        if self.is_json() {
            let members = parts.iter().map(|(name, part)| {
                let value = match part {
                    Part::Table(table) => Value::Array(table.objects().collect()),
                    Part::Value(value) => value.clone(),
                };
                ((*name).to_owned(), value)
            });
            line(&Value::Object(members.collect()).to_string());
            return;
        }
        let mut after_table = false;
        for (name, part) in parts {
            match part {
                Part::Value(value) => {
                    if std::mem::take(&mut after_table) {
                        line("");
                    }
                    line(&format!(
                        "{:<18}{}",
                        head(name).to_lowercase(),
                        cell(name, value)
                    ));
                }
                Part::Table(table) => {
                    line("");
                    line(&format!("{}:", head(name).to_lowercase()));
                    match table.len() {
                        0 => line("none"),
                        _ => table.lines().iter().for_each(|text| line(text)),
                    }
                    after_table = true;
                }
            }
        }
    }

    /// One object of a stream: a JSON line, or what `text` makes of it.
    pub fn item(&self, value: &Value, text: impl FnOnce() -> String) {
        match self.is_json() {
            true => line(&value.to_string()),
            false => line(&text()),
        }
    }

    /// A sentence for people. Scripts get the exit code.
    pub fn say(&self, sentence: &str) {
        if !self.is_json() {
            line(sentence);
        }
    }

    /// Shows what would be done and asks whether to. `false`: only a dry run was wanted.
    pub fn confirmed(&self, confirm: Confirm, what: &str) -> Outcome<bool> {
        if confirm.dry_run {
            self.say(&format!("dry run: would {what}"));
            return Ok(false);
        }
        if confirm.yes {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            return Err(AdminError::Usage(format!(
                "not confirmed, nothing was done: add --yes to {what}"
            )));
        }
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "{what}? Type yes: ").and_then(|()| stderr.flush());
        let mut answer = String::new();
        match std::io::stdin().read_line(&mut answer) {
            Ok(_) if answer.trim() == "yes" => Ok(true),
            _ => Err(AdminError::Usage("nothing was done".into())),
        }
    }
}

/// A part of a larger answer.
pub enum Part {
    Table(Table),
    Value(Value),
}

/// How far long work is, on standard error, if that is a terminal.
pub struct Progress {
    total: usize,
    shown: bool,
}

impl Progress {
    pub fn new(total: usize) -> Self {
        Self {
            total,
            shown: std::io::stderr().is_terminal(),
        }
    }

    pub fn at(&self, done: usize) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{done} of {} ", self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Writes a line to standard output. Whoever closed the pipe has read enough, so that is no failure.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = writeln!(std::io::stderr(), "ringmq: standard output: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_stand_right_texts_left_and_times_are_dates() {
        let mut table = Table::new(&["topic", "maxOffset", "storeTimestamp"]);
        table.push([json!("T"), json!(7), json!(1_709_164_801_007u64)]);
        table.push([json!("LongName"), json!(1000), json!(0)]);
        assert_eq!(
            table.lines(),
            [
                "TOPIC     MAX OFFSET  STORE TIME",
                "T                  7  2024-02-29 00:00:01.007",
                "LongName        1000  -",
            ]
        );
        let first = table.objects().next();
        assert_eq!(
            first,
            Some(json!({"topic": "T", "maxOffset": 7, "storeTimestamp": 1_709_164_801_007u64}))
        );
    }

    #[test]
    fn what_was_stored_cannot_move_the_cursor() {
        assert_eq!(cell("body", &json!("a\x1b[2Jb\n")), "a?[2Jb?");
        let long = "é".repeat(CELL_CHARS_MAX + 1);
        assert_eq!(cell("body", &json!(long)).chars().count(), CELL_CHARS_MAX);
    }
}
