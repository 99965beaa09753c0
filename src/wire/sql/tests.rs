#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::base::limits::{SQL_BYTES_MAX, SQL_DEPTH_MAX, SQL_STEPS_MAX};
use crate::wire::properties::PropertiesBuilder;

/// `name=value` separated by blanks.
fn properties(text: &str) -> Vec<u8> {
    let mut builder = PropertiesBuilder::new();
    for pair in text.split(' ').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap();
        builder.append(name, value);
    }
    builder.as_bytes().to_vec()
}

fn verdict(sql: &str, text: &str) -> Verdict {
    let filter = CompiledFilter::compile(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    filter.verdict(&properties(text))
}

fn refused(sql: &str) -> SqlError {
    match CompiledFilter::compile(sql) {
        Ok(filter) => panic!("{sql:?} compiles to {filter:?}"),
        Err(error) => error,
    }
}

/// Each line: an expression and T, F, N (unknown) or E (mismatch) over the same properties.
fn table(text: &str, rows: &[(&str, char)]) {
    for (sql, wanted) in rows {
        let wanted = match wanted {
            'T' => Verdict::True,
            'F' => Verdict::False,
            'N' => Verdict::Unknown,
            _ => Verdict::Mismatch,
        };
        assert_eq!(verdict(sql, text), wanted, "{sql} over {text}");
    }
}

#[test]
fn numbers_are_compared_as_the_constant_is_written() {
    table(
        "n=3 half=1.5 word=abc big=3000000000 plus=+7 padded=\u{20}",
        &[
            ("n = 3", 'T'),
            ("n = 3L", 'T'),
            ("3 = n", 'T'),
            ("n <> 3", 'F'),
            ("n > 2", 'T'),
            ("n >= 3", 'T'),
            ("n < 3", 'F'),
            ("n <= 3", 'T'),
            ("2 < n", 'T'),
            ("n = 3.0", 'T'),
            ("n > 2.5", 'T'),
            ("half > 1", 'E'),
            ("half > 1.0", 'T'),
            ("half = 1.5e0", 'T'),
            ("half = 15E-1", 'T'),
            ("half > .5", 'T'),
            ("half < 2.", 'T'),
            ("word > 1", 'E'),
            ("word = 1", 'E'),
            ("big > 1", 'E'),
            ("big > 2999999999", 'T'),
            ("big = 3000000000", 'T'),
            ("big > 1.0", 'T'),
            ("plus = 7", 'T'),
            ("n = +3", 'T'),
            ("n = -3", 'F'),
            ("n > -3", 'T'),
            ("-n = -3", 'N'),
            ("missing > 1", 'N'),
            ("n > missing", 'N'),
            ("n > half", 'T'),
            ("n < word", 'E'),
        ],
    );
}

#[test]
fn fractions_are_read_as_java_reads_them() {
    let reads = |value: &str| {
        let mut builder = PropertiesBuilder::new();
        builder.append("x", value);
        let filter = CompiledFilter::compile("x = 2.5").unwrap();
        filter.verdict(builder.as_bytes())
    };
    for value in [
        "2.5", "+2.5", " 2.5\t", "2.5f", "2.5D", "25e-1", "0002.50", "250E-2d",
    ] {
        assert_eq!(reads(value), Verdict::True, "{value:?}");
    }
    for value in ["NaN", "Infinity", "-Infinity", "1e999", "-NaN", "5.", ".5"] {
        assert_eq!(reads(value), Verdict::False, "{value:?}");
    }
    for value in [
        "inf", "nan", "infinity", "2,5", "2.5 x", "ff", ".", "1e", "--1", "1_0", "NaNf",
    ] {
        assert_eq!(reads(value), Verdict::Mismatch, "{value:?}");
    }
    table(
        "x=NaN y=-Infinity",
        &[
            ("x > 1.5", 'T'),
            ("x = y", 'F'),
            ("y < 1.5", 'T'),
            ("x > y", 'T'),
        ],
    );
}

#[test]
fn texts_are_equal_or_not_and_have_no_order() {
    table(
        "s=it's empty=x accent=é",
        &[
            ("s = 'it''s'", 'T'),
            ("s <> 'it''s'", 'F'),
            ("s = s", 'T'),
            ("s = 'IT''S'", 'F'),
            ("S = 'it''s'", 'N'),
            ("accent = 'é'", 'T'),
            ("s = empty", 'F'),
            ("'5' = 5", 'T'),
            ("5 = 'x'", 'E'),
        ],
    );
    for sql in [
        "s > 'a'",
        "'a' < s",
        "s BETWEEN 'a' AND 'b'",
        "s > TRUE",
        "s > NULL",
    ] {
        assert!(refused(sql).reason.contains("order"), "{sql}");
    }
}

#[test]
fn what_is_missing_is_unknown_but_not_the_same_from_both_sides() {
    table(
        "a=1",
        &[
            ("m = 'x'", 'N'),
            ("m <> 'x'", 'N'),
            ("'x' = m", 'F'),
            ("'x' <> m", 'T'),
            ("m = m", 'T'),
            ("a = m", 'F'),
            ("m IS NULL", 'T'),
            ("m IS NOT NULL", 'F'),
            ("a IS NULL", 'F'),
            ("a is not null", 'T'),
            ("NULL IS NULL", 'T'),
            ("(m = 1) IS NULL", 'T'),
            ("a IS NULL IS NULL", 'F'),
            ("NOT m = 1", 'N'),
            ("m BETWEEN 1 AND 2", 'N'),
            ("m NOT BETWEEN 1 AND 2", 'N'),
            ("m IN ('1')", 'N'),
            ("m NOT IN ('1')", 'N'),
            ("m CONTAINS '1'", 'F'),
            ("m NOT CONTAINS '1'", 'F'),
            ("m", 'N'),
        ],
    );
}

#[test]
fn logic_has_three_values() {
    let operand = [("TRUE", Some(true)), ("FALSE", Some(false)), ("NULL", None)];
    let letter = |truth: Option<bool>| match truth {
        Some(true) => 'T',
        Some(false) => 'F',
        None => 'N',
    };
    for (left, l) in operand {
        table("", &[(&*format!("NOT {left}"), letter(l.map(|l| !l)))]);
        for (right, r) in operand {
            let and = if l == Some(false) || r == Some(false) {
                Some(false)
            } else {
                l.and(r)
            };
            let or = if l == Some(true) || r == Some(true) {
                Some(true)
            } else if l.is_none() {
                None
            } else {
                r
            };
            let (conjunction, disjunction) =
                (format!("{left} AND {right}"), format!("{left} OR {right}"));
            table(
                "",
                &[(&*conjunction, letter(and)), (&*disjunction, letter(or))],
            );
        }
    }
}

#[test]
fn a_mismatch_ends_everything_unless_it_is_not_reached() {
    table(
        "w=abc",
        &[
            ("NOT (w > 1)", 'E'),
            ("w > 1 OR TRUE", 'E'),
            ("TRUE OR w > 1", 'T'),
            ("FALSE AND w > 1", 'F'),
            ("NULL AND w > 1", 'E'),
            ("w BETWEEN 1 AND 2", 'E'),
            ("1 BETWEEN 2 AND w", 'F'),
            ("3 BETWEEN 2 AND w", 'E'),
            ("3 NOT BETWEEN 4 AND w", 'T'),
            ("5 NOT BETWEEN 4 AND w", 'E'),
        ],
    );
}

#[test]
fn true_and_false_are_words_of_a_property_on_the_left_only() {
    table(
        "yes=TrUe no=x",
        &[
            ("yes = TRUE", 'T'),
            ("no = TRUE", 'F'),
            ("no = false", 'T'),
            ("yes <> FALSE", 'T'),
            ("TRUE = yes", 'E'),
            ("yes", 'F'),
            ("NOT yes", 'T'),
            ("TRUE", 'T'),
            ("FALSE", 'F'),
            ("NULL", 'N'),
            ("5 = TRUE", 'F'),
            ("(yes = TRUE) = (no = FALSE)", 'T'),
            ("(yes = TRUE) = 5", 'F'),
            ("- yes IS NULL", 'T'),
            ("- TRUE IS NULL", 'T'),
        ],
    );
}

#[test]
fn ranges_lists_and_parts_of_texts() {
    table(
        "n=3 s=hello",
        &[
            ("n BETWEEN 2 AND 3", 'T'),
            ("n BETWEEN 4 AND 9", 'F'),
            ("n between -1 and 2", 'F'),
            ("n NOT BETWEEN 2 AND 3", 'F'),
            ("n NOT BETWEEN 4 AND 9", 'T'),
            ("n NOT BETWEEN 9 AND 4", 'T'),
            ("n BETWEEN 9 AND -4", 'F'),
            ("n BETWEEN n AND n", 'T'),
            ("n BETWEEN 1 AND 3 AND s = 'hello'", 'T'),
            ("s IN ('a','hello', 'b')", 'T'),
            ("s NOT IN ('a','b')", 'T'),
            ("s not in ('hello')", 'F'),
            ("n IN ('3')", 'T'),
            ("s CONTAINS 'ell'", 'T'),
            ("s CONTAINS 'hello!'", 'F'),
            ("s NOT CONTAINS 'ell'", 'F'),
            ("s STARTSWITH 'he'", 'T'),
            ("s STARTSWITH 'lo'", 'F'),
            ("s NOT STARTSWITH 'lo'", 'T'),
            ("s ENDSWITH 'lo'", 'T'),
            ("s ENDSWITH 'he'", 'F'),
            ("s NOT ENDSWITH 'he'", 'T'),
            ("s CONTAINS ''", 'F'),
            ("s NOT CONTAINS ''", 'F'),
            ("3 CONTAINS '3'", 'F'),
            ("'abc' CONTAINS 'b'", 'T'),
            ("s CONTAINS 'h' CONTAINS 'h'", 'F'),
        ],
    );
}

#[test]
fn operators_hold_as_tightly_as_in_the_original() {
    table(
        "a=1 b=2 s=x",
        &[
            ("a = 1 OR b = 9 AND s = 'y'", 'T'),
            ("(a = 1 OR b = 9) AND s = 'y'", 'F'),
            ("a = 1 = TRUE", 'T'),
            ("s = 'x' = TRUE AND a = 1", 'T'),
            ("NOT a = 1", 'F'),
            ("NOT (a = 1)", 'F'),
            ("NOT NOT a = TRUE", 'F'),
            ("a = b < 3", 'F'),
            ("a = - - 1", 'T'),
            ("a = -(-1)", 'T'),
            ("+a = 1", 'T'),
            ("a IN ('1') AND b IN ('2')", 'T'),
        ],
    );
    assert!(refused("NOT a > 1").reason.contains("order"));
    assert!(refused("a > 1 > 1").reason.contains("order"));
    assert_eq!(refused("a IS NULL CONTAINS 'x'").column, 11);
}

#[test]
fn blanks_comments_and_case_do_not_matter() {
    table(
        "n=3",
        &[
            ("\tn\r\n>\x0C2", 'T'),
            ("n>2", 'T'),
            ("/* first **/ n /* a 'b' */ = 3", 'T'),
            ("n -- comment\n = 3 -- last", 'T'),
            ("n = --1\n3", 'T'),
            ("n = --3", 'T'),
            ("n bEtWeEn 1 aNd 4", 'T'),
            ("_a$1 IS NULL and $ is null", 'T'),
        ],
    );
}

#[test]
fn an_error_names_the_column_and_what_was_expected() {
    for (sql, column, part) in [
        ("", 1, "expected a value"),
        ("n = ", 5, "end of the expression"),
        ("n >", 4, "expected a value"),
        ("BETWEEN 1 AND", 1, "found `BETWEEN`"),
        ("n == 3 AND", 4, "found `=`"),
        ("(n = 1", 7, "`)`"),
        ("n IN ()", 7, "text in single quotes"),
        ("n IN (1)", 7, "text in single quotes"),
        ("n IN ('a'", 10, "`,` or `)`"),
        ("5 IN ('a')", 1, "property in front of IN"),
        ("n = 1)", 6, "end of the expression"),
        ("n LIKE 'a%'", 3, "found `LIKE`"),
        ("n + 1 > 2", 3, "operator"),
        ("é = 1", 1, "no meaning"),
        ("a = 'é' ! b", 9, "no meaning"),
        ("n = 'open", 5, "closing quote"),
        ("n = 1 /* open", 7, "`*/`"),
        ("n.m = 1", 2, "expected a number"),
        ("n = 007", 5, "zeros"),
        ("n = 0.0", 5, "4.9E-324"),
        ("n = 1e999", 5, "4.9E-324"),
        ("n = 9223372036854775808", 5, "9223372036854775807"),
        ("5", 1, "condition"),
        ("n = 1 AND 'x'", 11, "condition"),
        ("-n", 1, "condition"),
        ("n = NULL", 5, "IS NULL"),
        ("TRUE = 5", 1, "TRUE and FALSE"),
        ("n BETWEEN 5 AND 3", 11, "first bound"),
        ("n BETWEEN 1", 12, "AND between"),
        ("n IS 5", 6, "NULL or NOT NULL"),
        ("n NOT = 5", 7, "behind NOT"),
        ("n CONTAINS s", 12, "text in single quotes"),
        ("n = 5abc", 6, "operator"),
    ] {
        let error = refused(sql);
        assert_eq!(error.column, column, "{sql}: {error}");
        assert!(error.reason.contains(part), "{sql}: {error}");
    }
    assert_eq!(
        refused("n = ").to_string(),
        "SQL92 expression, column 5: expected a value: a property, a number, a text in single quotes, TRUE, FALSE, NULL or `(`, \
         found the end of the expression"
    );
}

#[test]
fn length_nesting_and_steps_are_bounded() {
    let long = format!("s = '{}'", "x".repeat(SQL_BYTES_MAX));
    assert!(refused(&long).reason.contains("bytes"));
    for prefix in ["(", "NOT ", "- ", "+"] {
        let deep = format!("{}TRUE", prefix.repeat(SQL_DEPTH_MAX));
        assert!(refused(&deep).reason.contains("nested"), "{prefix}");
    }
    let deep = format!("{}a = 1{}", "(a OR ".repeat(90), ")".repeat(90));
    assert!(CompiledFilter::compile(&deep).is_ok());
    let wide = vec!["a"; SQL_STEPS_MAX].join(" OR ");
    assert!(refused(&wide).reason.contains("operations"));
    let chain = vec!["a=1"; 700].join(" OR ");
    table("a=2", &[(&*chain, 'F')]);
    table("a=1", &[(&*chain, 'T')]);
}

#[test]
fn the_last_of_equal_properties_counts_and_no_bytes_are_trusted() {
    let filter = CompiledFilter::compile("a = '2'").unwrap();
    assert!(filter.matches(b"a\x011\x02a\x012\x02"));
    assert!(!filter.matches(b"a\x012\x02a\x01\xFF\x02"));
    assert!(!filter.matches(b"\xFF\x02\x01\x01a"));
}

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

/// Words of the language in random order: nearly SQL.
fn words() -> impl Strategy<Value = String> {
    let word = proptest::sample::select(vec![
        "a", "b", "1", "2L", "1.5", "'x'", "''", "TRUE", "NULL", "NOT", "AND", "OR", "IS", "IN",
        "BETWEEN", "CONTAINS", "(", ")", ",", "=", "<>", "<", ">=", "+", "-", "--", "/*", "*/",
        "\n", ".",
    ]);
    proptest::collection::vec(word, 0..24).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused_within_itself(text in prop_oneof![any::<String>(), words()]) {
        if let Err(error) = CompiledFilter::compile(&text) {
            prop_assert!(error.column >= 1 && error.column <= text.chars().count() + 1);
        }
    }

    #[test]
    fn whatever_compiles_runs_over_anything(sql in words(), bytes in any::<Vec<u8>>()) {
        if let Ok(filter) = CompiledFilter::compile(&sql) {
            let _ = filter.verdict(&bytes);
            prop_assert_eq!(filter.matches(&bytes), filter.verdict(&bytes) == Verdict::True);
        }
    }

    #[test]
    fn whole_numbers_have_their_order(left in any::<i64>(), right in any::<i32>()) {
        let value = left.to_string();
        let sql = format!("n < {right} OR n = {right} OR n > {right}");
        // The constant -2147483648 is a negated long.
        let fits = i32::try_from(left).is_ok() || right == i32::MIN;
        let wanted = if fits { Verdict::True } else { Verdict::Mismatch };
        prop_assert_eq!(verdict(&sql, &format!("n={value}")), wanted);
    }
}
