//! A page that shows one result, or several side by side: numbers, and drawings as SVG. One file, no script, no network.
//!
//! All results that are compared share the axes of a drawing. Latencies have logarithmic axes; a quantile is drawn only as
//! far as there are measurements behind it.

use std::fmt::Write;

use ringmq::base::civil::readable_time;

use crate::measure::{Kind, failure_count};
use crate::plan::Plan;
use crate::result::{Measured, Quantiles, RunResult, Second, decode};

/// One figure of them.
type OfQuantiles = fn(&Quantiles) -> u64;

/// More results than this have colours that nobody tells apart.
pub const RESULTS_MAX: usize = 8;
const COLOURS: [&str; RESULTS_MAX] = [
    "#2f6fde", "#d9622b", "#2a9d6a", "#a54fc4", "#c79a1b", "#d63d6c", "#2196a6", "#77787b",
];
/// Above it the figures of a run are not to be trusted.
const FOREIGN_CPUS_MAX: f64 = 0.3;
/// The generator itself did not run for so long: what it calls latency then is its own.
const STALL_SECONDS_MAX: f64 = 0.05;

/// Letters of a name in a legend.
const LEGEND_LETTERS_MAX: usize = 28;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #d8dce4; --paper: #ffffff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ee; --soft: #9aa3b2; --line: #363c48; --paper: #14171d; --card: #1c2129; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--soft); margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .82rem; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .5rem; vertical-align: -.05rem; }
.warn { color: #b4481e; font-weight: 600; }
figure { margin: 1.2rem 0 0; padding: .8rem 1rem .4rem; background: var(--card); border-radius: .6rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; } figcaption small { color: var(--soft); font-weight: 400; }
.pair { display: grid; gap: 0 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; background: var(--card); padding: .8rem; border-radius: .5rem; font-size: .82rem; }
";

/// The page.
pub fn page(results: &[RunResult]) -> String {
    let title = match results {
        [one] => one.name.clone(),
        _ => format!("{} results compared", results.len()),
    };
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    if let Some(first) = results.first() {
        let machine = &first.machine;
        let _ = writeln!(
            out,
            "<p class=\"lead\">{} · {} · {} processors · {} GiB · measured {}</p>",
            escape(&machine.kernel),
            escape(&machine.cpu),
            machine.cpus,
            machine.memory_bytes >> 30,
            date(first.began_ms),
        );
    }
    for kind in [Kind::Publish, Kind::EndToEnd, Kind::Pull] {
        let measured: Vec<_> = results
            .iter()
            .enumerate()
            .filter_map(|(index, result)| Some((index, result, result.of(kind)?)))
            .collect();
        if !measured.is_empty() {
            section(&mut out, kind, &measured);
        }
    }
    usage_section(&mut out, results);
    for (index, result) in results.iter().enumerate() {
        facts(&mut out, index, result);
    }
    out += "</body></html>\n";
    out
}

type Row<'a> = (usize, &'a RunResult, &'a Measured);

fn section(out: &mut String, kind: Kind, rows: &[Row]) {
    let (title, what) = match kind {
        Kind::Publish => (
            "Publish",
            "from the moment a send was due to its acknowledgement",
        ),
        Kind::EndToEnd => (
            "End to end",
            "from the moment a message was due to its delivery",
        ),
        Kind::Pull => (
            "Pull",
            "from the request to the answer that brought messages",
        ),
    };
    let _ = writeln!(
        out,
        "<h2>{title}</h2>\n<p class=\"lead\">Latency {what}, in milliseconds.</p>"
    );
    out.push_str(
        "<div class=\"scroll\"><table><tr><th>result</th><th>messages/s</th><th>MB/s</th><th>p50</th><th>p90</th><th>p99</th>\
         <th>p99.9</th><th>p99.99</th><th>p99.999</th><th>max</th><th>errors</th></tr>\n",
    );
    for (index, result, measured) in rows {
        let latency = &measured.latency;
        let errors = failure_count(&measured.failures);
        let _ = write!(
            out,
            "<tr><td>{}{}</td><td>{}</td><td>{:.1}</td>",
            key(*index),
            escape(&result.name),
            thousands(measured.messages_per_second),
            measured.bytes_per_second / 1e6
        );
        let columns = [
            (latency.p50, 1),
            (latency.p90, 10),
            (latency.p99, 100),
            (latency.p999, 1_000),
            (latency.p9999, 10_000),
            (latency.p99999, 100_000),
            (latency.max, 1),
        ];
        for (value, needs) in columns {
            // A quantile that no measurement lies behind would only repeat the greatest one.
            if latency.count >= needs {
                let _ = write!(out, "<td>{:.3}</td>", value as f64 / 1e6);
            } else {
                out.push_str("<td>–</td>");
            }
        }
        let _ = writeln!(out, "<td>{}</td></tr>", thousands(errors as f64));
    }
    out.push_str("</table></div>\n");
    let curves = rows.iter().map(|(index, result, measured)| Curve {
        colour: COLOURS[index % RESULTS_MAX],
        name: result.name.clone(),
        dash: "",
        points: percentile_curve(measured),
    });
    out.push_str("<figure class=\"percentiles\"><figcaption>Latency by percentile <small>ms, both axes logarithmic</small></figcaption>");
    out.push_str(&chart(
        &curves.collect::<Vec<_>>(),
        &percentile_axis(),
        Scale::Logarithmic,
        (1120.0, 340.0),
    ));
    out.push_str("</figure>\n<div class=\"pair\">");
    let seconds = rows
        .iter()
        .map(|(_, result, _)| result.seconds)
        .fold(1.0, f64::max);
    let over_time = |pick: &dyn Fn(&Second) -> f64| -> Vec<Curve> {
        rows.iter()
            .map(|(index, result, measured)| Curve {
                colour: COLOURS[index % RESULTS_MAX],
                name: result.name.clone(),
                dash: "",
                points: whole_seconds(result, measured)
                    .map(|second| (second.index as f64 + 0.5, pick(second)))
                    .collect(),
            })
            .collect()
    };
    out.push_str("<figure class=\"throughput\"><figcaption>Throughput <small>messages/s over seconds</small></figcaption>");
    out.push_str(&chart(
        &over_time(&|second| second.messages as f64),
        &time_axis(seconds),
        Scale::Linear,
        (560.0, 260.0),
    ));
    out.push_str("</figure><figure class=\"latency\">");
    let curves = if let [(_, result, measured)] = rows {
        out.push_str("<figcaption>Latency over time <small>ms: p50, p99, p99.9 of each second</small></figcaption>");
        let lines: [(&str, usize, OfQuantiles); 3] = [
            ("p50", 2, |latency| latency.p50),
            ("p99", 0, |latency| latency.p99),
            ("p99.9", 1, |latency| latency.p999),
        ];
        lines
            .into_iter()
            .map(|(name, colour, pick)| Curve {
                colour: COLOURS[colour],
                name: name.to_owned(),
                dash: "",
                points: whole_seconds(result, measured)
                    .filter(|second| second.latency.count > 0)
                    .map(|second| {
                        (
                            second.index as f64 + 0.5,
                            pick(&second.latency) as f64 / 1e6,
                        )
                    })
                    .collect(),
            })
            .collect()
    } else {
        out.push_str(
            "<figcaption>Latency over time <small>ms: p99 of each second</small></figcaption>",
        );
        over_time(&|second| second.latency.p99 as f64 / 1e6)
    };
    out.push_str(&chart(
        &curves,
        &time_axis(seconds),
        Scale::Logarithmic,
        (560.0, 260.0),
    ));
    out.push_str("</figure></div>\n");
}

/// The seconds that were measured from end to end; the last one of a catch-up is not.
fn whole_seconds<'a>(
    result: &RunResult,
    measured: &'a Measured,
) -> impl Iterator<Item = &'a Second> {
    let whole = (result.seconds + 0.001).floor().max(1.0) as u64;
    measured
        .series
        .iter()
        .filter(move |second| second.index < whole)
}

fn usage_section(out: &mut String, results: &[RunResult]) {
    out.push_str(
        "<h2>Cost</h2>\n<div class=\"scroll\"><table><tr><th>result</th><th>flush</th><th>broker CPU-s per million</th><th>broker CPU-s</th>\
         <th>broker resident MiB</th><th>client CPU-s per million</th><th>others' processors</th><th>verified</th></tr>\n",
    );
    for (index, result) in results.iter().enumerate() {
        let usage = &result.usage;
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        let foreign = usage.foreign_cpus.map(|foreign| {
            let class = if foreign > FOREIGN_CPUS_MAX {
                " class=\"warn\""
            } else {
                ""
            };
            format!("<span{class}>{foreign:.2}</span>")
        });
        let verified = result.verdict.as_ref().map(|verdict| {
            format!(
                "{} lost, {} duplicated, {} misplaced, {} reordered",
                verdict.lost, verdict.duplicated, verdict.misplaced, verdict.reordered
            )
        });
        let _ = writeln!(
            out,
            "<tr><td>{}{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2}</td><td>{}</td><td>{}</td></tr>",
            key(index),
            escape(&result.name),
            or_dash(
                result
                    .broker_settings
                    .get("flushDiskType")
                    .map(|flush| escape(flush))
            ),
            or_dash(
                usage
                    .broker_cpu_seconds_per_million
                    .map(|cpu| format!("{cpu:.2}"))
            ),
            or_dash(usage.broker_cpu_seconds.map(|cpu| format!("{cpu:.2}"))),
            or_dash(
                usage
                    .broker_peak_resident_bytes
                    .map(|bytes| (bytes >> 20).to_string())
            ),
            usage.client_cpu_seconds_per_million,
            or_dash(foreign),
            or_dash(verified),
        );
    }
    out.push_str("</table></div>\n");
    for result in results {
        if result
            .usage
            .foreign_cpus
            .is_some_and(|foreign| foreign > FOREIGN_CPUS_MAX)
        {
            let _ = writeln!(
                out,
                "<p class=\"warn\">{}: other processes used more than {FOREIGN_CPUS_MAX} processors meanwhile; repeat it on a quiet machine.</p>",
                escape(&result.name)
            );
        }
        if result.usage.stall_seconds > STALL_SECONDS_MAX {
            let _ = writeln!(
                out,
                "<p class=\"warn\">{}: the load generator itself did not get to run for {:.2} s; latencies up to that are its own.</p>",
                escape(&result.name),
                result.usage.stall_seconds
            );
        }
    }
    let with_broker: Vec<_> = results
        .iter()
        .enumerate()
        .filter(|(_, result)| result.usage.broker_cpu_seconds.is_some())
        .collect();
    if with_broker.is_empty() {
        return;
    }
    let curve = |index: usize, result: &RunResult, points| Curve {
        colour: COLOURS[index % RESULTS_MAX],
        name: result.name.clone(),
        dash: "",
        points,
    };
    let seconds = results
        .iter()
        .map(|result| result.seconds)
        .fold(1.0, f64::max);
    let cpu: Vec<_> = with_broker
        .iter()
        .map(|(index, result)| {
            let points = result
                .samples
                .windows(2)
                .filter(|pair| pair[1].at_seconds - pair[0].at_seconds > 0.5)
                .map(|pair| {
                    let length = pair[1].at_seconds - pair[0].at_seconds;
                    let used = pair[1].broker_cpu_seconds - pair[0].broker_cpu_seconds;
                    (pair[0].at_seconds + length / 2.0, used / length)
                });
            curve(*index, result, points.collect())
        })
        .collect();
    let memory: Vec<_> = with_broker
        .iter()
        .map(|(index, result)| {
            let points = result.samples.iter().map(|sample| {
                (
                    sample.at_seconds,
                    sample.broker_resident_bytes as f64 / 1048576.0,
                )
            });
            curve(*index, result, points.collect())
        })
        .collect();
    out.push_str("<div class=\"pair\"><figure class=\"cpu\"><figcaption>Broker's processors <small>over seconds</small></figcaption>");
    out.push_str(&chart(
        &cpu,
        &time_axis(seconds),
        Scale::Linear,
        (560.0, 220.0),
    ));
    out.push_str("</figure><figure class=\"memory\"><figcaption>Broker's memory <small>resident MiB over seconds</small></figcaption>");
    out.push_str(&chart(
        &memory,
        &time_axis(seconds),
        Scale::Linear,
        (560.0, 220.0),
    ));
    out.push_str("</figure></div>\n");
}

fn facts(out: &mut String, index: usize, result: &RunResult) {
    let _ = writeln!(
        out,
        "<details><summary>{}{}: how it was measured</summary><div class=\"scroll\"><table>",
        key(index),
        escape(&result.name)
    );
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class=\"text\">{}</td></tr>",
            escape(name),
            escape(value)
        );
    };
    row("command", &result.command.join(" "));
    row("load", &load_of(&result.plan));
    row(
        "measured",
        &format!(
            "{:.1} s from {}, {} processes",
            result.seconds,
            date(result.began_ms),
            result.processes
        ),
    );
    row(
        "governor",
        result.machine.governor.as_deref().unwrap_or("none"),
    );
    row(
        "locked memory",
        &format!(
            "client {}, broker {}",
            result.machine.memlock.as_deref().unwrap_or("unknown"),
            result
                .machine
                .broker_memlock
                .as_deref()
                .unwrap_or("unknown")
        ),
    );
    if let Some(store) = &result.machine.store {
        row(
            "store",
            &format!(
                "{} on {} ({}), {}",
                store.file_system, store.device, store.path, store.options
            ),
        );
    }
    row(
        "load average before",
        &format!("{:.2}", result.machine.load_before),
    );
    for (key, value) in &result.broker_settings {
        row(key, value);
    }
    for (kind, failure) in result.all_failures() {
        row(
            &format!("error {kind}"),
            &format!("{} times: {}", failure.count, failure.remark),
        );
    }
    out.push_str("</table></div></details>\n");
}

/// A plan in words.
pub fn load_of(plan: &Plan) -> String {
    let mut parts = Vec::new();
    if let Some(produce) = &plan.produce {
        parts.push(match produce.rate {
            Some(rate) => format!("open loop at {rate:.0} messages/s"),
            None => format!("closed loop, {} in flight", produce.in_flight),
        });
        if let Some(burst) = &produce.burst {
            parts.push(format!(
                "bursts of {:.0}/s for {} s every {} s",
                burst.rate, burst.for_seconds, burst.every_seconds
            ));
        }
        if produce.poisson {
            parts.push("random gaps".to_owned());
        }
        if produce.batch > 1 {
            parts.push(format!("batches of {}", produce.batch));
        }
        if produce.transaction.is_some() {
            parts.push("transactions".to_owned());
        }
        parts.push(format!(
            "{} bytes, {} connections, {} threads",
            plan.size, produce.connections, produce.threads
        ));
    }
    if let Some(consume) = &plan.consume {
        parts.push(format!(
            "consumer {:?}, {} messages a pull",
            consume.mode, consume.pull_messages
        ));
    }
    parts.push(format!("{} topics of {} queues", plan.topics, plan.queues));
    parts.join(", ")
}

struct Curve {
    colour: &'static str,
    name: String,
    dash: &'static str,
    points: Vec<(f64, f64)>,
}

/// The marks of an axis from 0 to 1 of its length.
struct Axis {
    from: f64,
    until: f64,
    marks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
}

/// Nines: 0 is the minimum, 5 is 99.999 %.
fn percentile_axis() -> Axis {
    let marks = ["0", "90", "99", "99.9", "99.99", "99.999"];
    let mut marks: Vec<_> = marks
        .iter()
        .enumerate()
        .map(|(at, text)| (at as f64, format!("{text} %")))
        .collect();
    marks.insert(1, (-(0.5f64.log10()), "50 %".to_owned()));
    Axis {
        from: 0.0,
        until: 5.0,
        marks,
    }
}

fn percentile_curve(measured: &Measured) -> Vec<(f64, f64)> {
    const STEPS_PER_NINE: u32 = 24;
    let Ok(histogram) = decode(&measured.histogram) else {
        return Vec::new();
    };
    if histogram.is_empty() {
        return Vec::new();
    }
    let known = (histogram.len() as f64).log10();
    (0..=5 * STEPS_PER_NINE)
        .map(|step| f64::from(step) / f64::from(STEPS_PER_NINE))
        .take_while(|nines| *nines <= known)
        .map(|nines| {
            let quantile = 1.0 - 10f64.powf(-nines);
            (nines, histogram.value_at_quantile(quantile) as f64 / 1e6)
        })
        .collect()
}

fn time_axis(seconds: f64) -> Axis {
    Axis {
        from: 0.0,
        until: seconds,
        marks: steps(0.0, seconds, 8)
            .into_iter()
            .map(|at| (at, short(at)))
            .collect(),
    }
}

/// Round numbers from `from` to `until`, about `wanted` of them.
fn steps(from: f64, until: f64, wanted: u32) -> Vec<f64> {
    let rough = ((until - from) / f64::from(wanted)).max(1e-9);
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|unit| unit * magnitude)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (from / step).ceil() as i64;
    let last = (until / step + 1e-9).floor() as i64;
    (first..=last).map(|at| at as f64 * step).collect()
}

/// A drawing with the y axis on the left and a legend on top.
fn chart(curves: &[Curve], x: &Axis, scale: Scale, (width, height): (f64, f64)) -> String {
    const LEFT: f64 = 62.0;
    const RIGHT: f64 = 36.0;
    const TOP: f64 = 26.0;
    const BOTTOM: f64 = 28.0;
    let values = || {
        curves
            .iter()
            .flat_map(|curve| &curve.points)
            .map(|point| point.1)
            .filter(|value| value.is_finite())
    };
    let greatest = values().fold(0.0, f64::max);
    let (low, high, marks) = match scale {
        Scale::Linear => {
            let marks = steps(0.0, if greatest > 0.0 { greatest * 1.08 } else { 1.0 }, 5);
            (
                0.0,
                if greatest > 0.0 { greatest * 1.08 } else { 1.0 },
                marks,
            )
        }
        Scale::Logarithmic => {
            let least = values()
                .filter(|value| *value > 0.0)
                .fold(f64::INFINITY, f64::min);
            let (least, greatest) = if least.is_finite() {
                (least, greatest)
            } else {
                (0.1, 1.0)
            };
            let low = least.log10().floor();
            let high = greatest.log10().ceil().max(low + 1.0);
            let marks = (low as i32..=high as i32)
                .map(|power| 10f64.powi(power))
                .collect();
            (low, high, marks)
        }
    };
    let to_y = |value: f64| {
        let value = if scale == Scale::Logarithmic {
            value.max(1e-9).log10()
        } else {
            value
        };
        let part = ((value - low) / (high - low)).clamp(0.0, 1.0);
        height - BOTTOM - part * (height - TOP - BOTTOM)
    };
    let to_x = |value: f64| {
        let part = ((value - x.from) / (x.until - x.from).max(1e-9)).clamp(0.0, 1.0);
        LEFT + part * (width - LEFT - RIGHT)
    };
    let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\">");
    for mark in marks {
        let y = to_y(mark);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            width - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            short(mark)
        );
    }
    for (at, text) in &x.marks {
        let x = to_x(*at);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - BOTTOM,
            height - 7.0,
            escape(text)
        );
    }
    let mut legend_x = LEFT;
    for curve in curves {
        let points: Vec<String> = curve
            .points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", to_x(*x), to_y(*y)))
            .collect();
        let colour = curve.colour;
        if let [one] = &points[..] {
            let (x, y) = one.split_once(',').unwrap_or(("0", "0"));
            let _ = write!(
                svg,
                "<circle class=\"curve\" cx=\"{x}\" cy=\"{y}\" r=\"3\" stroke=\"{colour}\"/>"
            );
        } else if !points.is_empty() {
            let _ = write!(
                svg,
                "<polyline class=\"curve\" stroke=\"{colour}\" stroke-dasharray=\"{}\" points=\"{}\"/>",
                curve.dash,
                points.join(" ")
            );
        }
        // The end of a long name is what tells it from its neighbours.
        let letters = curve.name.chars().count();
        let name: String = match letters.saturating_sub(LEGEND_LETTERS_MAX) {
            0 => curve.name.clone(),
            spare => format!(
                "…{}",
                curve.name.chars().skip(spare + 1).collect::<String>()
            ),
        };
        let _ = write!(
            svg,
            "<rect x=\"{legend_x:.1}\" y=\"6\" width=\"10\" height=\"10\" rx=\"2\" fill=\"{colour}\"/><text class=\"legend\" x=\"{:.1}\" y=\"15\">{}</text>",
            legend_x + 15.0,
            escape(&name)
        );
        // Wide enough for the widest letters of the font.
        legend_x += 32.0 + 7.2 * name.chars().count() as f64;
        if legend_x > width - 90.0 {
            break; // the table names the rest
        }
    }
    svg + "</svg>"
}

fn key(index: usize) -> String {
    format!(
        "<span class=\"key\" style=\"background:{}\"></span>",
        COLOURS[index % RESULTS_MAX]
    )
}

/// A number for an axis.
fn short(value: f64) -> String {
    let scaled = |value: f64, unit: &str| {
        let text = format!("{value:.2}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match value.abs() {
        large if large >= 1e6 => scaled(value / 1e6, " M"),
        large if large >= 1e4 => scaled(value / 1e3, " k"),
        small if small > 0.0 && small < 0.01 => format!("{value}"),
        _ => scaled(value, ""),
    }
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A moment as text in UTC, to the minute.
pub fn date(ms: i64) -> String {
    let text = readable_time(u64::try_from(ms).unwrap_or(0));
    format!("{} UTC", text.get(..16).unwrap_or(&text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_735_689_599_999), "2024-12-31 23:59 UTC");
    }

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(steps(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(steps(0.0, 1_080_000.0, 5).last(), Some(&1_000_000.0));
        assert_eq!(
            (short(0.001), short(2_500_000.0), short(150.0)),
            ("0.001".into(), "2.5 M".into(), "150".into())
        );
        assert_eq!(thousands(1234567.4), "1,234,567");
    }

    #[test]
    fn text_from_outside_cannot_become_markup() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
