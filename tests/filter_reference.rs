//! SQL92 filters against verdicts of RocketMQ's own filter module; `tests/filter-reference` says how they were made.
#![allow(clippy::unwrap_used)] // A test may panic.

use ringmq::wire::sql::{CompiledFilter, Verdict};

/// Cases from the original, made by tests/filter-reference: expression, properties, verdict, separated by tabs.
#[test]
fn verdicts_are_those_of_the_original() {
    let path = std::env::var("FILTER_CASES").unwrap_or_else(|_unset| {
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/filter-reference/cases.tsv"
        )
        .into()
    });
    let text = std::fs::read_to_string(path).unwrap();
    let (mut cases, mut wrong) = (0, Vec::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [sql, properties, wanted] = fields[..] else {
            panic!("a case has three fields: {line:?}");
        };
        let (sql, properties) = (unescape(sql), unescape(properties));
        let found = match CompiledFilter::compile(&sql) {
            Err(_) => "refused",
            Ok(filter) => match filter.verdict(properties.as_bytes()) {
                Verdict::True => "true",
                Verdict::False => "false",
                Verdict::Unknown => "null",
                Verdict::Mismatch => "error",
            },
        };
        // A last comment without a line end is one here only.
        if wanted == "rest" && sql.contains("--") {
            continue;
        }
        cases += 1;
        // The original takes the start of the text and ignores the rest; here that is an error.
        let wanted = if wanted == "rest" { "refused" } else { wanted };
        if found != wanted {
            wrong.push(format!("{line} but here {found}"));
        }
    }
    assert!(cases > 1_000, "{cases} cases");
    let shown = wrong
        .iter()
        .take(20)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        wrong.is_empty(),
        "{} of {cases} differ:\n{shown}",
        wrong.len()
    );
}

/// `\t`, `\n`, `\r`, `\f`, `\\`, and `\1` and `\2` for the bytes between properties.
fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut plain = String::new();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '\\' => match chars.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\x0C',
                Some('1') => '\x01',
                Some('2') => '\x02',
                other => other.unwrap(),
            },
            char => char,
        });
    }
    plain
}
