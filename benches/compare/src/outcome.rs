//! What one run of one contender gave: a line of JSON from the child to its parent.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Done,
    /// The contender cannot do this; why.
    Unsupported(String),
    /// What came out is not what was put in.
    Wrong(String),
    /// It panicked or did not finish.
    Failed(String),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub status: Status,
    pub figures: BTreeMap<String, f64>,
}

impl Outcome {
    pub fn unsupported(why: impl Into<String>) -> Outcome {
        Outcome { status: Status::Unsupported(why.into()), ..Outcome::default() }
    }

    pub fn failed(why: impl Into<String>) -> Outcome {
        Outcome { status: Status::Failed(why.into()), ..Outcome::default() }
    }

    pub fn set(&mut self, key: &str, value: f64) {
        // JSON has no infinity; a figure that is none is left out.
        if value.is_finite() {
            self.figures.insert(key.to_string(), value);
        }
    }

    /// What is wrong, if anything is. The first verdict stays.
    pub fn judge(&mut self, verdict: Option<String>) {
        if let (Status::Done, Some(what)) = (&self.status, verdict) {
            self.status = Status::Wrong(what);
        }
    }

    /// Percentiles of a histogram of nanoseconds, as microseconds.
    pub fn set_latency(&mut self, latency: &Histogram<u64>) {
        if latency.is_empty() {
            return;
        }
        for (key, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            self.set(key, latency.value_at_quantile(quantile) as f64 / 1e3);
        }
        self.set("max", latency.max() as f64 / 1e3);
    }
}

/// For nanoseconds up to a minute.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds that make sense")
}
