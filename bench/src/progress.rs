//! What a user sees while a run goes on: one line on a terminal, nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::Live;

/// A line on standard error that goes when this is dropped.
pub struct Progress {
    bar: ProgressBar,
    acknowledged: u64,
    delivered: u64,
    at_seconds: f64,
}

impl Progress {
    /// Shows nothing unless standard error is a terminal.
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0);
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:20} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        Self {
            bar,
            acknowledged: 0,
            delivered: 0,
            at_seconds: 0.0,
        }
    }

    /// The state of things.
    pub fn show(&mut self, live: &Live) {
        let seconds = (live.at_seconds - self.at_seconds).max(0.001);
        let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
        let mut text = String::new();
        if live.acknowledged > 0 {
            text += &format!("{:.0} sent/s ", rate(live.acknowledged, self.acknowledged));
        }
        if live.delivered > 0 {
            text += &format!("{:.0} received/s ", rate(live.delivered, self.delivered));
        }
        if let Some(last) = live.last {
            text += &format!(
                "p99 {:.2} ms ",
                last.latencies.value_at_quantile(0.99) as f64 / 1e6
            );
        }
        if live.failures > 0 {
            text += &format!("{} errors", live.failures);
        }
        if let Some(of_seconds) = live.of_seconds {
            self.bar.set_length(of_seconds.ceil() as u64);
        }
        self.bar.set_position(live.at_seconds as u64);
        self.bar.set_message(text);
        self.acknowledged = live.acknowledged;
        self.delivered = live.delivered;
        self.at_seconds = live.at_seconds;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
