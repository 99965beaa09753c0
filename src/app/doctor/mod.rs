//! `ringmq doctor`: what of this machine costs a broker how much. Changes no setting; writes one scratch file into the
//! directory that is asked about and removes it.
//!
//! `measure.rs` takes the figures that only a measurement gives, through the same seam to the disk as the broker; `facts.rs`
//! reads settings and says what each of them costs, with the figure beside it where there is one. `tuning/README.md` has
//! each remedy and how to undo it.

mod facts;
mod measure;

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::admin::args::Format;
use crate::admin::output::Table;
use crate::app::run::{Exit, print};
use crate::io::preflight::{self, Needs, Obstacle, StoreNeeds};
use crate::io::process;

/// How a setting is for a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It costs speed or safety.
    Costs,
    /// It keeps a broker from starting.
    Stops,
}

/// One setting of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub knob: &'static str,
    pub verdict: Verdict,
    /// What it is now.
    pub found: String,
    /// What that means for a broker, with the figure that was measured here if there is one.
    pub effect: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

/// `ringmq doctor [--store DIR] [-o json]`: exit code 0 if a broker would start, 1 if not.
pub fn run(store: &Path, format: Format) -> Exit {
    let needs = Needs {
        shards: process::cores(),
        store: None,
        ports: Vec::new(),
    };
    let directory = match nearest_directory(store) {
        Ok(directory) => directory,
        Err(reason) => return Exit::Failed.because(&reason),
    };
    // With a store of its own the directory would be made and locked: what a file there can do is asked without that.
    let reports = [
        preflight::check(&needs),
        preflight::check_file_system(&StoreNeeds {
            root: &directory,
            new_bytes: 0,
        }),
    ];
    let mut findings: Vec<Finding> = Vec::new();
    for report in &reports {
        let stops = report.obstacles.iter();
        findings.extend(stops.map(|it| of_obstacle(it, Verdict::Stops)));
        let costs = report.warnings.iter();
        findings.extend(costs.map(|it| of_obstacle(it, Verdict::Costs)));
    }
    let is_able = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Stops);
    let measured = if is_able {
        match measure::all(&directory) {
            Ok(measured) => Some(measured),
            Err(reason) => return Exit::Failed.because(&reason),
        }
    } else {
        None
    };
    findings.extend(facts::all(Path::new("/"), &directory, measured.as_ref()));
    findings.sort_by_key(|finding| match finding.verdict {
        Verdict::Stops => 0,
        Verdict::Costs => 1,
        Verdict::Ok => 2,
    });
    match format {
        Format::Json => {
            let report = json!({
                "directory": directory,
                "measured": measured.as_ref().map(|measured| measured.figures()),
                "findings": findings,
            });
            print(&report.to_string());
        }
        Format::Table => tell(&directory, measured.as_ref(), &findings),
    }
    match is_able {
        true => Exit::Stopped,
        false => Exit::Failed.because("a broker does not start here"),
    }
}

fn of_obstacle(obstacle: &Obstacle, verdict: Verdict) -> Finding {
    Finding {
        knob: "start",
        verdict,
        found: obstacle.what.clone(),
        effect: String::new(),
        remedy: obstacle.remedy.clone(),
    }
}

/// The directory itself, or the nearest one above it that is there: a store that is not made yet will be on its file system.
fn nearest_directory(store: &Path) -> Result<std::path::PathBuf, String> {
    let absolute =
        std::path::absolute(store).map_err(|error| format!("{}: {error}", store.display()))?;
    let found = absolute.ancestors().find(|path| path.is_dir());
    found
        .and_then(|path| fs::canonicalize(path).ok())
        .ok_or_else(|| format!("{}: no directory leads there", store.display()))
}

fn tell(directory: &Path, measured: Option<&measure::Measured>, findings: &[Finding]) {
    if let Some(measured) = measured {
        print(&format!(
            "Measured, in {} (microseconds, one at a time unless said):",
            directory.display()
        ));
        let mut table = Table::new(&["what", "p50", "p99", "max", "meaning"]);
        for figure in measured.figures() {
            let number = |value: Option<f64>| match value {
                Some(value) => Value::from((value * 10.0).round() / 10.0),
                None => Value::Null,
            };
            table.push([
                figure.what.into(),
                number(figure.p50_us),
                number(figure.p99_us),
                number(figure.max_us),
                figure.meaning.into(),
            ]);
        }
        for line in table.lines() {
            print(&format!("  {line}"));
        }
        print("");
    }
    for (verdict, title) in [
        (Verdict::Stops, "Keeps a broker from starting:"),
        (Verdict::Costs, "Costs something:"),
        (Verdict::Ok, "As it should be:"),
    ] {
        let of_it: Vec<&Finding> = findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .collect();
        if of_it.is_empty() {
            continue;
        }
        print(title);
        for finding in of_it {
            let effect = match finding.effect.as_str() {
                "" => String::new(),
                effect => format!(": {effect}"),
            };
            print(&format!("  {:<18} {}{effect}", finding.knob, finding.found));
            if !finding.remedy.is_empty() {
                print(&format!("  {:<18} -> {}", "", finding.remedy));
            }
        }
        print("");
    }
    print("tuning/README.md says of each knob what it moves, how to set it and how to undo that.");
}
