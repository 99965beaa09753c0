//! Prometheus' text format, version 0.0.4: families with their samples.
//!
//! Pure. Every family of [`crate::broker::metrics::FAMILIES`] is on every page, with or without samples, so that dashboards
//! and rules can be checked against a page. (The crates for this format keep a registry of shared counters; here
//! the numbers are gathered when somebody asks, and only this text is left to do.)

use std::fmt::Write;

use crate::base::histogram::Histogram;

/// What kind of numbers a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the broker starts again.
    Counter,
    Gauge,
    Histogram,
}

/// One metric with all its label values.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

/// A label and its value.
pub type Label<'a> = (&'static str, &'a str);

/// A page that is being written. Samples may come in any order; they are shown by family.
pub struct TextPage {
    families: &'static [Family],
    /// Labels of every sample, `a="b",c="d"`.
    common: String,
    /// Lines of each family.
    lines: Vec<String>,
}

fn push_label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
}

/// Whether a label may have this name.
pub fn is_label_name(name: &str) -> bool {
    let mut characters = name.chars();
    let first = characters.next();
    first.is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && !name.starts_with("__")
        && characters.all(|character| character.is_ascii_alphanumeric() || character == '_')
}

impl TextPage {
    /// An empty page; `common` are labels of every sample.
    pub fn new(families: &'static [Family], common: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (name, value) in common {
            push_label(&mut text, name, value);
        }
        Self {
            families,
            common: text,
            lines: vec![String::new(); families.len()],
        }
    }

    fn index(&self, name: &str, kind: Kind) -> usize {
        let at = self.families.iter().position(|family| family.name == name);
        // A name that is not in the table is our own mistake, and every name is used by a test.
        let at = at.unwrap_or_else(|| panic!("no metric is called {name}"));
        let is_same = (self.families[at].kind == Kind::Histogram) == (kind == Kind::Histogram);
        assert!(is_same, "{name} is of another kind");
        at
    }

    fn line(
        &mut self,
        at: usize,
        suffix: &str,
        labels: &[Label<'_>],
        value: impl std::fmt::Display,
    ) {
        let mut all = self.common.clone();
        for (name, value) in labels {
            push_label(&mut all, name, value);
        }
        let name = self.families[at].name;
        // Writing to a string does not fail.
        let _ = writeln!(self.lines[at], "{name}{suffix}{{{all}}} {value}");
    }

    /// One number.
    pub fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl std::fmt::Display) {
        let at = self.index(name, Kind::Gauge);
        self.line(at, "", labels, value);
    }

    /// A histogram; its bounds and its sum are divided by `unit`, such as 1,000,000 for microseconds shown as seconds.
    pub fn histogram(&mut self, name: &str, labels: &[Label<'_>], of: &Histogram, unit: u64) {
        let at = self.index(name, Kind::Histogram);
        let unit = unit as f64;
        for (bound, count) in of.cumulative() {
            let bound = (bound as f64 / unit).to_string();
            let mut labels = labels.to_vec();
            labels.push(("le", &bound));
            self.line(at, "_bucket", &labels, count);
        }
        let mut all = labels.to_vec();
        all.push(("le", "+Inf"));
        self.line(at, "_bucket", &all, of.count());
        self.line(at, "_sum", labels, of.sum() as f64 / unit);
        self.line(at, "_count", labels, of.count());
    }

    /// The whole page.
    pub fn finish(self) -> String {
        let mut text =
            String::with_capacity(self.lines.iter().map(String::len).sum::<usize>() + 8192);
        for (family, lines) in self.families.iter().zip(&self.lines) {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let Family { name, help, .. } = family;
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            text.push_str(lines);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: &[Family] = &[
        Family {
            name: "a_total",
            kind: Kind::Counter,
            help: "Things.",
        },
        Family {
            name: "b_seconds",
            kind: Kind::Histogram,
            help: "Times.",
        },
    ];

    #[test]
    fn values_of_labels_are_escaped_and_families_stay_together() {
        let mut page = TextPage::new(FAMILIES, &[("c", "x")]);
        let mut times = Histogram::new(&[500, 1_500]);
        times.record(1_000);
        page.histogram("b_seconds", &[], &times, 1_000);
        page.sample("a_total", &[("t", "a\"b\\c\nd")], 7);
        assert_eq!(
            page.finish(),
            "# HELP a_total Things.\n# TYPE a_total counter\n\
             a_total{c=\"x\",t=\"a\\\"b\\\\c\\nd\"} 7\n\
             # HELP b_seconds Times.\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{c=\"x\",le=\"0.5\"} 0\n\
             b_seconds_bucket{c=\"x\",le=\"1.5\"} 1\n\
             b_seconds_bucket{c=\"x\",le=\"+Inf\"} 1\n\
             b_seconds_sum{c=\"x\"} 1\n\
             b_seconds_count{c=\"x\"} 1\n"
        );
    }

    #[test]
    fn names_of_labels_are_letters_digits_and_underscores() {
        for good in ["zone", "_a", "a1"] {
            assert!(is_label_name(good), "{good}");
        }
        for bad in ["", "1a", "a-b", "__a", "a b", "é"] {
            assert!(!is_label_name(bad), "{bad}");
        }
    }
}
