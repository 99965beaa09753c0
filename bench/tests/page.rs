//! The page in a real browser: it is drawn, nothing runs over, and no label covers another one.
//!
//! `CHROME` names the browser; without one on the machine the test says aloud that it was skipped.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ringmq_bench::measure::{Interval, Kind, add_failure};
use ringmq_bench::plan::{Header, Plan, Produce};
use ringmq_bench::report::page;
use ringmq_bench::result::{Parts, RunResult, summarise};
use ringmq_bench::run::{Outcome, Sample};

/// A run of a minute whose latencies and rates grow with `scale`; its name has markup in it.
fn result(name: &str, scale: u64) -> RunResult {
    let plan = Plan {
        name: name.into(),
        namesrv: "127.0.0.1:9876".into(),
        broker: None,
        broker_pids: vec![1],
        topic: "T".into(),
        topics: 1,
        queues: 4,
        size: 1024,
        header: Header::Json,
        protocol: Default::default(),
        produce: Some(Produce {
            batch: 1,
            in_flight: 64,
            connections: 1,
            threads: 1,
            cpus: Vec::new(),
            rate: Some(10_000.0),
            poisson: false,
            burst: None,
            skew: 0.0,
            tag: None,
            transaction: None,
        }),
        consume: None,
        warm_seconds: 2.0,
        seconds: 60.0,
        verify: false,
    };
    let mut outcome = Outcome {
        intervals: Default::default(),
        seconds: 60.0,
        samples: Vec::new(),
        failures: Default::default(),
        verdict: None,
        began_epoch_ns: 1_735_689_600_000_000_000,
        stall_seconds: 0.2,
    };
    let mut random = fastrand::Rng::with_seed(scale);
    for index in 0..60 {
        for kind in [Kind::Publish, Kind::EndToEnd] {
            let mut interval = Interval::new(kind, index);
            interval.messages = 10_000 * scale + random.u64(0..500);
            interval.bytes = interval.messages * 1024;
            for _ in 0..5_000 {
                let tail = (1.0 / (1.0 - random.f64())).powf(0.7);
                interval
                    .latencies
                    .record((scale as f64 * 200_000.0 * tail) as u64)
                    .unwrap();
            }
            add_failure(
                &mut interval.failures,
                "2 SYSTEM_BUSY",
                1,
                "<script>alert(1)</script>",
            );
            outcome.intervals.insert((kind, index), interval);
        }
        outcome.samples.push(Sample {
            at_seconds: index as f64,
            broker_cpu_seconds: index as f64 * 0.4,
            broker_resident_bytes: (200 + index) << 20,
            broker_peak_resident_bytes: 300 << 20,
            client_cpu_seconds: index as f64 * 0.1,
            machine_cpu_seconds: index as f64 * 1.1,
        });
    }
    summarise(Parts {
        plan: &plan,
        processes: 1,
        machine: Default::default(),
        settings: [("flushDiskType".to_owned(), "SYNC_FLUSH".to_owned())].into(),
        outcome: &outcome,
        whole_series: false,
    })
}

#[test]
fn a_page_has_every_drawing_and_no_markup_of_others() {
    let page = page(&[result("RingMQ <b>bold</b>", 1), result("original", 4)]);
    for class in ["percentiles", "throughput", "latency", "cpu", "memory"] {
        assert!(
            page.contains(&format!("<figure class=\"{class}\">")),
            "{class}"
        );
    }
    assert!(
        !page.contains("<b>bold") && !page.contains("<script"),
        "text from outside is escaped"
    );
    assert!(page.contains("SYNC_FLUSH"));
    assert!(
        page.contains("other processes used more than"),
        "a noisy run is marked"
    );
    assert!(
        page.contains("did not get to run"),
        "a generator that was stopped is marked"
    );
}

#[test]
fn a_saved_result_reads_back_and_another_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.json");
    let saved = result("saved", 2);
    saved.save(&path).unwrap();
    let read = RunResult::load(&path).unwrap();
    assert_eq!(page(&[read]), page(&[saved]));
    let text = fs::read_to_string(&path)
        .unwrap()
        .replacen("\"format\": 1", "\"format\": 9", 1);
    fs::write(&path, text).unwrap();
    assert!(
        RunResult::load(&path)
            .unwrap_err()
            .to_string()
            .contains("format is 9")
    );
}

fn browser() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CHROME") {
        return Some(path.into());
    }
    let names = [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
        "chrome",
    ];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .find(|path| path.exists())
}

/// Looks at the page from inside and writes what is wrong into its title.
const INSPECTION: &str = "<script>addEventListener('load', () => {
  const wrong = [];
  const inside = (outer, inner) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
    && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
  const overlap = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const drawings = [...document.querySelectorAll('svg')];
  for (const svg of drawings) {
    const name = svg.closest('figure').className;
    const box = svg.getBoundingClientRect();
    if (box.width < 200 || box.height < 100) wrong.push(name + ' is small');
    const curves = [...svg.querySelectorAll('.curve')].filter(curve => curve.getBoundingClientRect().width > 100);
    if (curves.length === 0) wrong.push(name + ' has no curve');
    const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    for (const [text, place] of texts) if (!inside(box, place)) wrong.push(name + ': ' + text + ' runs over');
    texts.forEach(([a, one], at) => texts.slice(at + 1).forEach(([b, other]) => {
      if (overlap(one, other)) wrong.push(name + ': ' + a + ' covers ' + b);
    }));
  }
  if (document.documentElement.scrollWidth > innerWidth + 1) wrong.push('the page is wider than its window');
  document.title = drawings.length + ' drawings; wrong: ' + wrong.join(', ') + ';';
});</script>";

#[test]
fn a_browser_draws_the_page_without_a_fault() {
    let Some(browser) = browser() else {
        println!("SKIPPED report page in a browser: there is no Chromium on this machine");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let pages = [
        ("one", page(&[result("one result", 1)]), 8),
        (
            "two",
            page(&[
                result("RingMQ, flushed", 1),
                result("Apache RocketMQ, not flushed", 9),
            ]),
            8,
        ),
    ];
    for (name, html, drawings) in pages {
        let file = directory.path().join(format!("{name}.html"));
        fs::write(
            &file,
            html.replace("</body>", &format!("{INSPECTION}</body>")),
        )
        .unwrap();
        for width in [1280, 700] {
            let output = Command::new(&browser)
                .args([
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--dump-dom",
                ])
                .arg(format!("--window-size={width},900"))
                .arg(format!(
                    "--user-data-dir={}",
                    directory.path().join("profile").display()
                ))
                .arg(format!("file://{}", file.display()))
                .output()
                .unwrap();
            let dom = String::from_utf8_lossy(&output.stdout);
            let title = dom
                .split("<title>")
                .nth(1)
                .and_then(|rest| rest.split("</title>").next())
                .unwrap_or_default();
            assert_eq!(
                title,
                format!("{drawings} drawings; wrong: ;"),
                "{name} at {width}"
            );
        }
    }
}
