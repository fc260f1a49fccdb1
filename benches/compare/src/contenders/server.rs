//! A server that the contest starts for itself: on a Unix socket, waited for until it answers, killed by its process id
//! when it is dropped; and a connection to it that reads lines and bytes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// What the program prints when it is asked for its version; `None` if it is not installed.
pub(super) fn version_line(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) struct Server {
    child: Child,
    socket: PathBuf,
    pid_file: PathBuf,
}

impl Server {
    /// `arguments` gets the path of the socket to listen on. What the server prints goes to `server.log` in `dir`.
    pub(super) fn start(
        program: &str,
        dir: &Path,
        arguments: impl FnOnce(&Path, &mut Command),
    ) -> Server {
        let pid_file = dir.join("server.pid");
        end_the_one_before(&pid_file, program);
        let socket = fresh_socket();
        let log = File::create(dir.join("server.log")).unwrap();
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log);
        arguments(&socket, &mut command);
        let child = command.spawn().unwrap();
        fs::write(&pid_file, child.id().to_string()).unwrap();
        let mut server = Server { child, socket, pid_file };
        server.wait_until_it_listens();
        server
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn connect(&self) -> Connection {
        Connection::new(UnixStream::connect(&self.socket).unwrap())
    }

    fn wait_until_it_listens(&mut self) {
        let began = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server has ended: {status}; see server.log beside {:?}", self.pid_file);
            }
            assert!(began.elapsed() < PATIENCE, "the server does not listen");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It fails if the server has ended already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// A harness that was killed has left its server running on the same directory. To it belongs the same end.
fn end_the_one_before(pid_file: &Path, program: &str) {
    let Ok(pid) = fs::read_to_string(pid_file) else { return };
    let alive = || {
        // The number may be another process' by now.
        let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        name.windows(program.len()).any(|part| part == program.as_bytes())
    };
    if !alive() {
        return;
    }
    let killed = Command::new("kill").args(["-KILL", &pid]).status().unwrap();
    assert!(killed.success(), "cannot kill the server {pid}");
    let began = Instant::now();
    while alive() {
        assert!(began.elapsed() < PATIENCE, "the server {pid} does not end");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Not in the store's directory: the path of a socket must be short.
fn fresh_socket() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("millpond-compare-{}-{number}.sock", std::process::id());
    let socket = std::env::temp_dir().join(name);
    // Of an earlier process with this id.
    let _ = fs::remove_file(&socket);
    socket
}

pub(super) fn path_argument(before: &str, path: &Path) -> impl AsRef<OsStr> {
    OsStr::from_bytes(&[before.as_bytes(), path.as_os_str().as_bytes()].concat()).to_owned()
}

pub(super) struct Connection {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Connection {
    fn new(stream: UnixStream) -> Connection {
        // Or a server that hangs makes the contest hang.
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { reader: BufReader::new(stream), line: Vec::new() }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// The next line, without its CR LF.
    pub(super) fn line(&mut self) -> &str {
        self.line.clear();
        self.reader.read_until(b'\n', &mut self.line).unwrap();
        let line = self.line.strip_suffix(b"\r\n").expect("a whole line");
        std::str::from_utf8(line).expect("a line of text")
    }

    /// The next `count` bytes, and the CR LF behind them.
    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.ends_with(b"\r\n"), "{}", io::Error::from(io::ErrorKind::InvalidData));
        bytes.truncate(count);
        bytes
    }
}
