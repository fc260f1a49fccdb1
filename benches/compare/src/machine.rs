//! What a run was made on. A figure is worth nothing without it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::contenders::git_version;
use crate::measure;

#[derive(Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub file_system: String,
    pub disk: String,
    pub rustc: String,
    pub commit: String,
    pub date: String,
}

impl Machine {
    pub fn look(dir: &Path) -> Machine {
        Machine {
            processor: after_colon("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory_gib(),
            kernel: one_line("/proc/sys/kernel/osrelease"),
            file_system: file_system(dir).unwrap_or_else(unknown),
            disk: disk(dir).unwrap_or_else(unknown),
            rustc: rustc().unwrap_or_else(unknown),
            commit: git_version(),
            date: date(SystemTime::now()),
        }
    }
}

fn unknown() -> String {
    "unknown".to_string()
}

fn one_line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| unknown(), |text| text.trim().to_string())
}

fn after_colon(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or_else(unknown, |(_, value)| value.trim().to_string())
}

fn memory_gib() -> f64 {
    let text = after_colon("/proc/meminfo", "MemTotal");
    let kib: f64 = text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    kib / f64::from(1 << 20)
}

/// Kind and options of the file system that a directory lies on.
fn file_system(dir: &Path) -> Option<String> {
    let device = fs::metadata(dir).ok()?.dev();
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // Fields: id, parent, device, root, mount point, options, optional ones, "-", kind, source, options of the system.
    let line = mounts.lines().rfind(|line| line.split(' ').nth(2) == Some(number.as_str()))?;
    let (_, behind) = line.split_once(" - ")?;
    let mut fields = behind.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    Some(format!("{kind} ({options})"))
}

fn disk(dir: &Path) -> Option<String> {
    let device = measure::block_device(dir)?;
    // A partition lies in the directory of its disk.
    let whole = if device.join("partition").exists() { device.parent()? } else { &device };
    let name = whole.file_name()?.to_str()?;
    let read = |path: &str| fs::read_to_string(whole.join(path)).ok();
    let model =
        read("device/model").map_or("no model name".to_string(), |text| text.trim().to_string());
    let cache = read("queue/write_cache").map_or_else(unknown, |text| text.trim().to_string());
    Some(format!("{name}, {model}, write cache: {cache}"))
}

fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The day in UTC, as year-month-day.
fn date(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut days = since.as_secs() / 86_400;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}
