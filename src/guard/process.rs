//! Parses files of others in a process of its own, which may come to any end.
//!
//! Parsers believe what a file says: how deep its schema is, how long a page is once it is unpacked, how many values
//! there are, how large a table has to be. A file of a hundred bytes can overflow the stack, ask for a petabyte, or
//! keep a core busy for a year, and none of that can be caught where it happens: it ends the process. So a second
//! process of the same program does it, with a limit on memory, time and stack. It opens nothing: it asks for bytes
//! of the one file, and gets them over a pipe. Whatever the file does to it is then an error like any other, which
//! names the file; and whatever goes wrong with reading the file is known here, where the error of the system is.
//!
//! ```text
//!   Session::call ---- Call, request ---------->  Task::call
//!   Source::read  <--- Read, offset, length ----  Source::read
//!                 ---- Bytes ------------------>
//!                 <--- Done, answer ------------
//! ```
//!
//! It costs some 10 ms for a process, and a copy of what is read and of what is answered. A process serves one file
//! after another; there are as many as files are open at a time. A program has to say that it can be started in this
//! way, by [`use_program`]; without that, as in other people's programs, the task runs on the calling thread, with
//! nothing to guard it but [`guarded`](super::guarded).

use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::limits::{self, Limits};

/// The stack of a thread that parses.
const STACK_BYTES: usize = 8 << 20;

/// Most bytes of a file that are asked for at a time.
const READ_BYTES: u64 = 1 << 20;

/// Files that a process serves before another takes its place, since memory gets patchy.
const MAX_SESSIONS: u32 = 64;

/// Processes that are kept for later.
const MAX_IDLE: usize = 64;

/// Most bytes of a frame: more than any answer has.
const MAX_FRAME_BYTES: u64 = 1 << 32;

/// Bytes of a file.
pub trait Source: Send + Sync {
    /// Number of bytes.
    fn size_bytes(&self) -> u64;

    /// Returns the bytes of a range, all of them.
    ///
    /// # Errors
    ///
    /// When the file ends before, or reading fails.
    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>>;
}

/// A file that is being parsed.
pub trait Task: Send {
    /// Answers a request.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, in the task's own form.
    fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, Vec<u8>>;
}

/// A kind of files, and how to parse one.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What it is called between the processes.
    pub id: u8,
    /// Begins with a file.
    pub start: fn(Arc<dyn Source>) -> Box<dyn Task>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The file could not be read.
    Source(io::Error),
    /// No process could be started.
    Start(io::Error),
    /// The task refuses the file, in its own words.
    Refused(Vec<u8>),
    /// The process is gone, since the file asked too much of it.
    Died(Death),
}

/// What ended a process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Death {
    /// It would have needed more memory than it may have.
    #[error(
        "reading it takes more than {} MiB of memory, the most that a file of its size may take",
        limit_bytes >> 20
    )]
    Memory {
        /// The limit.
        limit_bytes: u64,
    },
    /// It took too long.
    #[error(
        "reading it takes more than {limit_seconds} seconds, the most that a file of its size may take"
    )]
    Time {
        /// The limit.
        limit_seconds: u64,
    },
    /// It recursed too deeply.
    #[error("it is nested too deeply")]
    Stack,
    /// The parser failed in another way.
    #[error("the parser ended without an answer ({how})")]
    Other {
        /// How the process ended.
        how: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    Open = 1,
    Call,
    Bytes,
    NoBytes,
    Read,
    Done,
    Refused,
}

impl Tag {
    const ALL: [Self; 7] = [
        Self::Open,
        Self::Call,
        Self::Bytes,
        Self::NoBytes,
        Self::Read,
        Self::Done,
        Self::Refused,
    ];
}

fn send(to: &mut impl Write, tag: Tag, payload: &[u8]) -> io::Result<()> {
    let mut head = [0; 9];
    let (first, len) = head.split_at_mut(1);
    first.fill(tag as u8);
    len.copy_from_slice(&(payload.len() as u64).to_le_bytes());
    to.write_all(&head)?;
    to.write_all(payload)?;
    to.flush()
}

fn receive(from: &mut impl Read) -> io::Result<(Tag, Vec<u8>)> {
    let mut tag = [0; 1];
    from.read_exact(&mut tag)?;
    let mut len = [0; 8];
    from.read_exact(&mut len)?;
    let (tag, len) = (tag[0], u64::from_le_bytes(len));
    let tag = Tag::ALL.into_iter().find(|known| *known as u8 == tag);
    let (Some(tag), true) = (tag, len <= MAX_FRAME_BYTES) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a frame"));
    };
    let mut payload = Vec::new();
    from.take(len).read_to_end(&mut payload)?;
    if payload.len() as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((tag, payload))
}

/// Some numbers, as a frame has them.
fn numbers<const N: usize>(payload: &[u8]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    let (chunks, rest) = payload.as_chunks::<8>();
    if chunks.len() != N || !rest.is_empty() {
        return None;
    }
    for (number, bytes) in numbers.iter_mut().zip(chunks) {
        *number = u64::from_le_bytes(*bytes);
    }
    Some(numbers)
}

fn frame_of(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// The program to start, and its argument.
static PROGRAM: OnceLock<(PathBuf, &'static str)> = OnceLock::new();

/// Processes that wait for a file.
static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

/// Makes files be parsed in processes of this program, which are started with one argument, at which it has to call
/// [`serve`].
pub fn use_program(argument: &'static str) {
    if let Ok(program) = super::this_program() {
        let _ = PROGRAM.set((program, argument));
    }
}

/// Returns whether files are parsed in processes of their own.
pub fn has_program() -> bool {
    PROGRAM.get().is_some()
}

/// A process that parses.
struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    num_sessions: u32,
}

impl Worker {
    fn take() -> io::Result<Option<Self>> {
        let Some((program, argument)) = PROGRAM.get() else {
            return Ok(None);
        };
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(worker) = idle {
            return Ok(Some(worker));
        }
        let mut command = Command::new(program);
        command
            .arg(argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Signals of the terminal are for the process that can tell about them.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a process without pipes"));
        };
        Ok(Some(Self {
            child,
            stdin,
            stdout: BufReader::with_capacity(1 << 16, stdout),
            num_sessions: 0,
        }))
    }

    /// Ends with a process that gave no answer, and finds out why: because of the file, or of somebody who
    /// killed it.
    fn failure(&mut self, error: io::Error, limits: Limits) -> Failure {
        if error.kind() == io::ErrorKind::InvalidData {
            let _ = self.child.kill();
        }
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let mut bytes = Vec::new();
            let _ = stderr.take(1 << 14).read_to_end(&mut bytes);
            said = String::from_utf8_lossy(&bytes).into_owned();
        }
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return Failure::Start(error),
        };
        Failure::Died(if said.contains("memory allocation of") {
            Death::Memory {
                limit_bytes: limits.memory_bytes,
            }
        } else if said.contains("overflowed its stack") {
            Death::Stack
        } else if limits::is_out_of_time(status) {
            Death::Time {
                limit_seconds: limits.cpu_seconds,
            }
        } else if limits::is_killed(status) && error.kind() != io::ErrorKind::InvalidData {
            return Failure::Start(io::Error::other(format!(
                "the process that reads files was ended from outside ({status})"
            )));
        } else {
            Death::Other {
                how: status.to_string(),
            }
        })
    }
}

enum Place {
    /// Without a program to start.
    Here(Box<dyn Task>, Arc<Noting>),
    There(Worker),
    /// The process is gone.
    Nowhere,
}

/// A file that is being parsed somewhere.
pub struct Session {
    source: Arc<dyn Source>,
    limits: Limits,
    place: Place,
}

impl Session {
    /// Begins with a file.
    ///
    /// # Errors
    ///
    /// [`Failure::Start`].
    pub fn open(kind: Kind, source: Arc<dyn Source>) -> Result<Self, Failure> {
        let limits = Limits::of_file(source.size_bytes());
        let mut attempts = 0;
        let place = loop {
            let Some(mut worker) = Worker::take().map_err(Failure::Start)? else {
                let noting = Arc::new(Noting {
                    source: Arc::clone(&source),
                    failed: Mutex::new(None),
                });
                break Place::Here((kind.start)(Arc::clone(&noting) as _), noting);
            };
            worker.num_sessions += 1;
            let opening = frame_of(&[
                u64::from(kind.id),
                source.size_bytes(),
                limits.memory_bytes,
                limits.cpu_seconds,
            ]);
            match send(&mut worker.stdin, Tag::Open, &opening) {
                Ok(()) => break Place::There(worker),
                // One that waited may have been ended by others.
                Err(error) if attempts < MAX_IDLE => {
                    attempts += 1;
                    worker.failure(error, limits);
                }
                Err(error) => return Err(Failure::Start(error)),
            }
        };
        Ok(Self {
            source,
            limits,
            place,
        })
    }

    /// Sends a request, and waits for the answer.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, Failure> {
        let worker = match &mut self.place {
            Place::Here(task, noting) => {
                let outcome = task.call(request);
                return settled(outcome, noting.take());
            }
            Place::There(worker) => worker,
            Place::Nowhere => {
                let gone = "the process that reads files is gone";
                return Err(Failure::Start(io::Error::other(gone)));
            }
        };
        let mut failed_read = None;
        let mut step = || -> io::Result<Result<Vec<u8>, Vec<u8>>> {
            send(&mut worker.stdin, Tag::Call, request)?;
            loop {
                let (tag, payload) = receive(&mut worker.stdout)?;
                match tag {
                    Tag::Done => return Ok(Ok(payload)),
                    Tag::Refused => return Ok(Err(payload)),
                    Tag::Read => {
                        let [start, len] = numbers(&payload).ok_or(io::ErrorKind::InvalidData)?;
                        let end = start.saturating_add(len.min(READ_BYTES));
                        match self.source.read(start..end) {
                            Ok(bytes) => send(&mut worker.stdin, Tag::Bytes, &bytes)?,
                            Err(error) => {
                                send(&mut worker.stdin, Tag::NoBytes, &[])?;
                                failed_read = Some(error);
                            }
                        }
                    }
                    _ => return Err(io::ErrorKind::InvalidData.into()),
                }
            }
        };
        let outcome = match step() {
            Ok(outcome) => outcome,
            Err(error) => {
                let failure = worker.failure(error, self.limits);
                self.place = Place::Nowhere;
                return Err(failure);
            }
        };
        settled(outcome, failed_read)
    }
}

/// What a task says, or the error behind it that reading the file gave, which a parser only quotes.
fn settled(
    outcome: Result<Vec<u8>, Vec<u8>>,
    failed_read: Option<io::Error>,
) -> Result<Vec<u8>, Failure> {
    match (outcome, failed_read) {
        (Ok(answer), _) => Ok(answer),
        (Err(_), Some(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(Failure::Source(error))
        }
        (Err(refused), _) => Err(Failure::Refused(refused)),
    }
}

/// A file that remembers why it could not be read.
struct Noting {
    source: Arc<dyn Source>,
    failed: Mutex<Option<io::Error>>,
}

impl Noting {
    fn take(&self) -> Option<io::Error> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take()
    }
}

impl Source for Noting {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.source.read(range).map_err(|error| {
            let quoted = io::Error::new(error.kind(), error.to_string());
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            quoted
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let place = std::mem::replace(&mut self.place, Place::Nowhere);
        if let Place::There(mut worker) = place {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            if worker.num_sessions < MAX_SESSIONS && idle.len() < MAX_IDLE {
                idle.push(worker);
            } else {
                drop(idle);
                let _ = worker.child.kill();
                let _ = worker.child.wait();
            }
        }
    }
}

/// The pipes to the process that asks.
struct Pipes {
    stdin: io::Stdin,
    stdout: io::Stdout,
}

impl Pipes {
    fn receive(&self) -> io::Result<(Tag, Vec<u8>)> {
        receive(&mut self.stdin.lock())
    }

    fn send(&self, tag: Tag, payload: &[u8]) -> io::Result<()> {
        send(&mut self.stdout.lock(), tag, payload)
    }
}

/// The file of the process that asks.
struct Remote {
    pipes: Arc<Pipes>,
    size_bytes: u64,
}

impl Source for Remote {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        if range.end > self.size_bytes || range.start > range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let len = READ_BYTES.min(range.end - start);
            self.pipes.send(Tag::Read, &frame_of(&[start, len]))?;
            match self.pipes.receive()? {
                (Tag::Bytes, block) if block.len() as u64 == len => bytes.extend(block),
                _ => return Err(io::Error::other("the file could not be read")),
            }
            start += len;
        }
        Ok(bytes)
    }
}

/// Parses files for the process that started this one, until that is gone.
pub fn serve(kinds: &[Kind]) {
    limits::leave_no_core();
    let kinds = kinds.to_vec();
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    if let Ok(thread) = thread.spawn(move || serve_here(&kinds)) {
        let _ = thread.join();
    }
}

fn serve_here(kinds: &[Kind]) -> Option<()> {
    let pipes = Arc::new(Pipes {
        stdin: io::stdin(),
        stdout: io::stdout(),
    });
    let mut open: Option<(Box<dyn Task>, u64)> = None;
    loop {
        let (tag, payload) = pipes.receive().ok()?;
        match tag {
            Tag::Open => {
                // What the file before took is given back first.
                drop(open.take());
                let [id, size_bytes, memory_bytes, cpu_seconds] = numbers(&payload)?;
                let kind = kinds.iter().find(|kind| u64::from(kind.id) == id)?;
                limits::limit_memory(memory_bytes);
                let source = Remote {
                    pipes: Arc::clone(&pipes),
                    size_bytes,
                };
                open = Some(((kind.start)(Arc::new(source)), cpu_seconds));
            }
            Tag::Call => {
                let (task, cpu_seconds) = open.as_mut()?;
                limits::limit_cpu(*cpu_seconds);
                match task.call(&payload) {
                    Ok(answer) => pipes.send(Tag::Done, &answer),
                    Err(refused) => pipes.send(Tag::Refused, &refused),
                }
                .ok()?;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Text(&'static [u8]);

    impl Source for Text {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
            Ok(self.0[range.start as usize..range.end as usize].to_vec())
        }
    }

    struct Count(Arc<dyn Source>);

    impl Task for Count {
        fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
            let text = self.0.read(0..self.0.size_bytes()).unwrap();
            match text.iter().filter(|byte| request.contains(byte)).count() {
                0 => Err(b"none".to_vec()),
                n => Ok(n.to_string().into_bytes()),
            }
        }
    }

    #[test]
    fn without_a_program_to_start_a_task_runs_here() {
        let kind = Kind {
            id: 9,
            start: |source| Box::new(Count(source)),
        };
        let mut session = Session::open(kind, Arc::new(Text(b"banana"))).unwrap();
        assert_eq!(session.call(b"a").unwrap(), b"3");
        assert!(matches!(session.call(b"x"), Err(Failure::Refused(text)) if text == b"none"));
    }

    #[test]
    fn a_frame_that_is_none_is_an_error_and_takes_no_memory() {
        let mut bytes = Vec::new();
        send(&mut bytes, Tag::Done, b"answer").unwrap();
        assert_eq!(
            receive(&mut bytes.as_slice()).unwrap(),
            (Tag::Done, b"answer".to_vec())
        );
        bytes[1..9].copy_from_slice(&(1_u64 << 31).to_le_bytes());
        assert!(receive(&mut bytes.as_slice()).is_err());
        bytes[0] = 99;
        assert!(receive(&mut bytes.as_slice()).is_err());
    }
}
