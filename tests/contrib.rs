//! The dashboard and the alert rules of `contrib/`: every metric that they name is one that the broker offers.
#![allow(clippy::unwrap_used)] // a test may panic

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ringmq::broker::metrics::FAMILIES;
use ringmq::broker::metrics::text::Kind;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Words of a text that look like metrics.
fn metrics_of(text: &str) -> BTreeSet<&str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| {
            ["rocketmq_", "ringmq_", "process_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        })
        .collect()
}

/// Whether a series of this name is on the page.
fn is_offered(name: &str) -> bool {
    FAMILIES.iter().any(|family| match family.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix) == Some(family.name)),
        Kind::Counter | Kind::Gauge => name == family.name,
    })
}

#[test]
fn every_metric_of_the_dashboard_is_offered() {
    let text = read("contrib/grafana/ringmq.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 12);
    let mut named = 0;
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let metrics = metrics_of(expression);
            assert!(!metrics.is_empty(), "{}: {expression}", panel["title"]);
            named += metrics.len();
            for metric in metrics {
                assert!(is_offered(metric), "{}: {metric}", panel["title"]);
            }
        }
    }
    assert!(named > 20, "{named}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        for metric in metrics_of(variable["query"].as_str().unwrap()) {
            assert!(is_offered(metric), "{}: {metric}", variable["name"]);
        }
    }
}

#[test]
fn every_metric_of_the_alert_rules_is_offered() {
    let text = read("contrib/alerts/ringmq.rules.yml");
    let rules: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    let metrics = metrics_of(&rules);
    assert!(metrics.len() > 10, "{metrics:?}");
    for metric in metrics {
        assert!(is_offered(metric), "{metric}");
    }
    let count = |word: &str| text.matches(word).count();
    assert_eq!(count("- alert: "), count("expr: "));
    assert_eq!(count("- alert: "), count("summary: "));
}

#[test]
fn a_series_of_a_histogram_has_a_suffix_and_an_unknown_name_is_noticed() {
    assert!(is_offered("ringmq_log_flush_seconds_bucket"));
    assert!(!is_offered("ringmq_log_flush_seconds"));
    assert!(!is_offered("rocketmq_messages_in"));
}
