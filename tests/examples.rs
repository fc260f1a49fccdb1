//! The examples do what they say. The quickstart is the first thing that anybody runs: killed midway, as its first lines
//! ask for, it must go on where it was and prove that nothing is missing.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// `cargo test` builds the examples beside the tests. (`cargo test --test examples` alone does not.)
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let example = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(example.is_file(), "{example:?} is not built; `cargo build --example {name}`");
    example
}

struct Run {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// With this pause the shipped text takes at least three seconds.
fn start(dir: &Path, file: Option<&Path>) -> Run {
    let mut command = Command::new(example("quickstart"));
    command.args(file).arg("--dir").arg(dir).args(["--pause-ms", "20"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    Run { child, output }
}

impl Run {
    /// Kills it at the first report that lines were counted, and returns how many.
    fn kill_at_work(mut self) -> usize {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it ended by itself");
            let counted = line.trim_end().rsplit_once("lines, counted ");
            let counted = counted.and_then(|(_, counted)| counted.parse().ok()).unwrap_or(0);
            if counted > 0 {
                self.child.kill().unwrap();
                assert!(!self.child.wait().unwrap().success());
                return counted;
            }
        }
    }

    fn finish(mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap(), text)
    }
}

#[test]
fn a_killed_quickstart_goes_on_where_it_was_and_misses_no_line() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("queues");
    let first = start(&dir, None).kill_at_work();
    let second = start(&dir, None).kill_at_work();
    assert!(second >= first, "{second} lines counted, {first} before the kill");
    let (status, output) = start(&dir, None).finish();
    assert!(status.success(), "{output}");
    assert!(output.contains("going on after an earlier run"), "{output}");
    assert!(output.contains("no line is missing"), "{output}");
    assert!(!dir.exists(), "it has cleaned up");
}

#[test]
fn a_quickstart_whose_text_has_changed_says_so_and_fails() {
    let temporary = tempfile::tempdir().unwrap();
    let (dir, file) = (temporary.path().join("queues"), temporary.path().join("text"));
    std::fs::write(&file, "one two three\n".repeat(400)).unwrap();
    start(&dir, Some(&file)).kill_at_work();
    std::fs::write(&file, "one two\n".repeat(400)).unwrap();
    let (status, output) = start(&dir, Some(&file)).finish();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("has the file changed"), "{output}");
    assert!(dir.exists());
}

#[test]
fn retries_end_with_everything_sent() {
    let output = Command::new(example("retries")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let in_order = [
        "grace, attempt 1: 550 no such user: grace; it is tried again",
        "grace, attempt 2: 550 no such user: grace; it is tried again",
        "grace, attempt 3: 550 no such user: grace; given up",
        "grace: from \"mails\" after 3 attempts, because of \"550 no such user: grace\"",
        "1 brought back.",
        "grace, attempt 1: sent",
        "0 messages are left.",
    ];
    let mut rest = &*text;
    for line in in_order {
        let at = rest.find(line).unwrap_or_else(|| panic!("{line:?} is missing in {text}"));
        rest = &rest[at + line.len()..];
    }
}

#[test]
fn the_outbox_is_proven_and_the_wrong_one_is_caught() {
    let output = Command::new(example("outbox")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("no order is missing"), "{text}");
    assert!(text.contains("order 1 was accepted, has not arrived, and does not wait"), "{text}");
}
