//! Medians of many results as a Markdown table: one row for each case and side.
//!
//! A result belongs to the case in front of the last `/` of its name and to the side behind it, as compare.sh names them.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::measure::{Kind, failure_count};
use crate::result::RunResult;

/// Above it a row is marked.
const FOREIGN_CPUS_MAX: f64 = 0.3;

/// The middle value; of an even number the lower one of the two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// What a row shows of one run: what its user waits for.
fn kind_of(result: &RunResult) -> Option<Kind> {
    [Kind::EndToEnd, Kind::Publish, Kind::Pull]
        .into_iter()
        .find(|kind| result.of(*kind).is_some())
}

/// The table, and what machine it is from.
pub fn markdown(results: &[RunResult]) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut groups: BTreeMap<(String, String), Vec<&RunResult>> = BTreeMap::new();
    for result in results {
        let (case, side) = result.name.rsplit_once('/').unwrap_or((&result.name, ""));
        let key = (case.to_owned(), side.to_owned());
        if !groups.contains_key(&key) {
            // Sides of one case stay together, cases in the order in which they ran.
            let at = rows
                .iter()
                .rposition(|(other, _)| *other == key.0)
                .map_or(rows.len(), |at| at + 1);
            rows.insert(at, key.clone());
        }
        groups.entry(key).or_default().push(result);
    }
    let mut out = String::new();
    if let Some(first) = results.first() {
        let machine = &first.machine;
        let store = machine.store.as_ref().map_or_else(
            || "unknown".to_owned(),
            |store| {
                format!(
                    "{} ({}) on {}",
                    store.file_system, store.options, store.device
                )
            },
        );
        let _ = writeln!(
            out,
            "Machine: {}, {}, {} processors, governor {}, {} GiB; store: {store}; locked memory of the broker: {}.\n",
            machine.kernel,
            machine.cpu,
            machine.cpus,
            machine.governor.as_deref().unwrap_or("none"),
            machine.memory_bytes >> 30,
            machine.broker_memlock.as_deref().unwrap_or("unknown"),
        );
    }
    out.push_str(
        "| case | side | flush | runs | messages/s | p50 ms | p99 ms | p99.9 ms | broker CPU-s | client CPU-s | broker MiB | errors |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for key in &rows {
        let Some(runs) = groups.get(key) else {
            continue;
        };
        let of = |pick: &dyn Fn(&RunResult) -> Option<f64>| {
            median(runs.iter().filter_map(|run| pick(run)).collect())
        };
        let measured = |pick: fn(&crate::result::Measured) -> f64| {
            of(&|run| Some(pick(run.of(kind_of(run)?)?)))
        };
        let show = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let errors: u64 = runs
            .iter()
            .map(|run| failure_count(&run.all_failures()))
            .sum();
        let foreign = of(&|run| run.usage.foreign_cpus);
        let mark = if foreign.is_some_and(|foreign| foreign > FOREIGN_CPUS_MAX) {
            " (!)"
        } else {
            ""
        };
        let flush = runs[0]
            .broker_settings
            .get("flushDiskType")
            .map_or("unknown", String::as_str);
        let _ = writeln!(
            out,
            "| {}{mark} | {} | {flush} | {} | {} | {} | {} | {} | {} | {} | {} | {errors} |",
            key.0,
            key.1,
            runs.len(),
            show(measured(|one| one.messages_per_second), 0),
            show(measured(|one| one.latency.p50 as f64 / 1e6), 3),
            show(measured(|one| one.latency.p99 as f64 / 1e6), 3),
            show(measured(|one| one.latency.p999 as f64 / 1e6), 3),
            show(of(&|run| run.usage.broker_cpu_seconds_per_million), 2),
            show(of(&|run| Some(run.usage.client_cpu_seconds_per_million)), 2),
            show(
                of(&|run| Some((run.usage.broker_peak_resident_bytes? >> 20) as f64)),
                0
            ),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_measured() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(1.0));
        assert_eq!(median(Vec::new()), None);
    }
}
