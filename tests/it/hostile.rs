//! Files and surroundings that mean harm: nothing aborts, hangs, takes a machine's memory, or reaches a terminal raw.

mod escapes;
mod files;
mod opening;
mod sets;
mod streams;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a measured run ended.
struct Measured {
    status: ExitStatus,
    stderr: String,
    /// Most memory of the process, or of one that it started.
    peak_bytes: u64,
    /// Time of a core that it took, with those that it started.
    computed: Duration,
}

/// Most time that a file may take that is refused.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Most memory that it may take.
const MAX_BYTES: u64 = 500 << 20;

/// Runs a command, and kills it when it takes many times as long as it may: other tests want cores too.
fn measured(command: &mut Command) -> Measured {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (status, peak_bytes, computed) = wait(&mut child, started + 60 * MAX_TIME);
    Measured {
        status,
        peak_bytes,
        computed,
        stderr: reader.join().unwrap(),
    }
}

fn wait(child: &mut Child, until: Instant) -> (ExitStatus, u64, Duration) {
    let pid = i32::try_from(child.id()).unwrap();
    loop {
        let mut status = 0;
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: both pointers are to live values of the types that the call fills in; the process is a child that
        // nobody else waits for.
        let ended = unsafe { libc::wait4(pid, &mut status, libc::WNOHANG, usage.as_mut_ptr()) };
        if ended == pid {
            // SAFETY: all of it are integers, for which zeros are a value, and the call has filled them in.
            let usage = unsafe { usage.assume_init() };
            let peak = u64::try_from(usage.ru_maxrss).unwrap() << 10;
            let computed = [usage.ru_utime, usage.ru_stime].map(|time| {
                let micros = u64::try_from(time.tv_usec).unwrap();
                Duration::from_secs(u64::try_from(time.tv_sec).unwrap())
                    + Duration::from_micros(micros)
            });
            return (ExitStatus::from_raw(status), peak, computed.iter().sum());
        }
        assert_eq!(ended, 0, "{}", std::io::Error::last_os_error());
        if Instant::now() > until {
            // SAFETY: the process is a child that was not waited for, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Measured {
    /// What is wrong with how a bad file was refused; empty if nothing is.
    fn problems(&self, exit: i32) -> Vec<String> {
        let mut problems = Vec::new();
        if self.status.code() != Some(exit) {
            problems.push(format!("{} rather than exit code {exit}", self.status));
        }
        if self.computed > MAX_TIME {
            problems.push(format!("it took {:?} of a core", self.computed));
        }
        if self.peak_bytes > MAX_BYTES {
            problems.push(format!("it took {} MiB", self.peak_bytes >> 20));
        }
        if self.stderr.contains("panicked") || self.stderr.contains("internal error") {
            problems.push("it panicked".to_owned());
        }
        if !problems.is_empty() {
            problems.push(self.stderr.clone());
        }
        problems
    }

    /// The error, without the logs before it.
    fn error(&self) -> &str {
        let at = self.stderr.find("error: ").unwrap_or(self.stderr.len());
        &self.stderr[at..]
    }
}
