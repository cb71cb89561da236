//! The file, and the thread that writes it.
//!
//! Whole lines alone reach the operating system, so that a program that crashes leaves a file which viewers load.

use crate::trace::FILE_VARIABLE;
use crate::trace::json::{self, Place, When};
use crate::trace::track::Collector;
use halite_hal::{Error, Result};
use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the thread looks for work that is over.
const TICK: Duration = Duration::from_millis(20);
/// How long work that is still under way when everything was dropped may take before it is written untimed.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// Lines of host threads that the writing thread has not taken yet; beyond, they are counted and lost. It is asked to
/// hurry from half of that on.
const MOST_WAITING_BYTES: usize = 16 << 20;
/// Room for lines that is kept for the next ones.
const KEPT_BYTES: usize = 1 << 20;

/// A timeline's file. The last handle completes it, for which it may wait some time for work under way.
pub(crate) struct TraceFile {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    /// Notified when there is something that should not wait for the next tick.
    urgent: Condvar,
}

#[derive(Default)]
struct Inbox {
    lines: Vec<u8>,
    lost: u64,
    /// Streams that the thread does not know yet.
    tracks: Vec<Collector>,
    /// Host threads that have a name in the timeline already.
    named: HashSet<Place>,
    is_closing: bool,
}

/// The files of this process by path. A path that is opened again is the same timeline.
static FILES: Mutex<Vec<(PathBuf, Weak<TraceFile>)>> = Mutex::new(Vec::new());
static PROCESSES: AtomicU32 = AtomicU32::new(1);
static THREADS: AtomicU32 = AtomicU32::new(1);

thread_local! {
    static THREAD: u32 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// Nanoseconds from the first use of the layer in this process, which is where every timeline begins.
pub(crate) fn nanoseconds(at: Instant) -> i64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let begin = *BEGIN.get_or_init(|| at);
    match at.checked_duration_since(begin) {
        Some(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        None => -i64::try_from(begin.duration_since(at).as_nanos()).unwrap_or(i64::MAX),
    }
}

/// A number for a device's process in the timeline; no other has it.
pub(crate) fn fresh_process() -> u32 {
    PROCESSES.fetch_add(1, Ordering::Relaxed)
}

impl TraceFile {
    /// The timeline in `path`, in which `%p` stands for the operating system's process.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        let path = expanded(path);
        // Made absolute, so that a program may change its working folder between two openings.
        let key = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = files.iter().position(|(own, _)| *own == key);
        if let Some(file) = known.and_then(|index| files[index].1.upgrade()) {
            return Ok(file);
        }
        let out = create(&path, known.is_some()).map_err(|reason| {
            Error::invalid(format!(
                "{FILE_VARIABLE} names '{}', which cannot be written: {reason}",
                path.display()
            ))
        })?;
        nanoseconds(Instant::now());
        let shared = Arc::new(Shared { inbox: Mutex::default(), urgent: Condvar::new() });
        let writer = Writer { shared: shared.clone(), out, path: path.clone(), has_failed: false };
        let writer = thread::Builder::new()
            .name("halite-trace".into())
            .spawn(move || writer.run())
            .map_err(|error| Error::unavailable(format!("the trace's thread does not start: {error}")))?;
        let file = Arc::new(Self { shared, writer: Some(writer) });
        match known {
            Some(index) => files[index].1 = Arc::downgrade(&file),
            None => files.push((key, Arc::downgrade(&file))),
        }
        Ok(file)
    }

    /// Gives a process of the timeline its name.
    pub(crate) fn name_process(&self, process: u32, text: &str) {
        let mut inbox = self.shared.inbox();
        json::name(&mut inbox.lines, Place { process, thread: 0 }, "process_name", text);
    }

    /// Adds a stream, whose entries are written from now on.
    pub(crate) fn add_track(&self, name: &str, track: Collector) {
        let mut inbox = self.shared.inbox();
        json::name(&mut inbox.lines, track.place(), "thread_name", name);
        inbox.tracks.push(track);
        drop(inbox);
        self.shared.urgent.notify_one();
    }

    /// Adds a line about the calling thread's use of a device: a `part` of [`json::part`].
    pub(crate) fn note(&self, process: u32, when: When, part: &[u8]) {
        let place = Place { process, thread: THREAD.with(|thread| *thread) };
        let Some(mut inbox) = self.shared.inbox_with_room() else { return };
        if inbox.named.insert(place) {
            let name = match thread::current().name() {
                Some(name) => format!("host {name}"),
                None => format!("host thread {}", place.thread),
            };
            json::name(&mut inbox.lines, place, "thread_name", &name);
        }
        json::line(&mut inbox.lines, place, when, part, b"");
    }

    /// Adds a line of a stream, a `part` of [`json::part`] with `more` behind it, past its collector.
    pub(crate) fn add_line(&self, place: Place, when: When, part: &[u8], more: &[u8]) {
        let Some(mut inbox) = self.shared.inbox_with_room() else { return };
        json::line(&mut inbox.lines, place, when, part, more);
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        self.shared.inbox().is_closing = true;
        self.shared.urgent.notify_one();
        let Some(writer) = self.writer.take() else { return };
        // An event that the thread itself drops may hold the last handle.
        if writer.thread().id() != thread::current().id() && writer.join().is_err() {
            log::error!("the trace's thread panicked; the file is cut off");
        }
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inbox for one more line, unless the writing thread lags so far behind that the line is lost.
    fn inbox_with_room(&self) -> Option<MutexGuard<'_, Inbox>> {
        let mut inbox = self.inbox();
        if inbox.lines.len() > MOST_WAITING_BYTES / 2 {
            self.urgent.notify_one();
        }
        if inbox.lines.len() > MOST_WAITING_BYTES {
            inbox.lost += 1;
            return None;
        }
        Some(inbox)
    }
}

/// What the thread owns.
struct Writer {
    shared: Arc<Shared>,
    out: File,
    path: PathBuf,
    has_failed: bool,
}

impl Writer {
    fn run(mut self) {
        let mut tracks: Vec<Collector> = Vec::new();
        let mut lines = Vec::new();
        let mut lost = 0;
        let mut deadline: Option<Instant> = None;
        loop {
            {
                let mut inbox = self.shared.inbox();
                if !inbox.is_closing {
                    let woken = self.shared.urgent.wait_timeout(inbox, TICK);
                    inbox = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                lines.append(&mut inbox.lines);
                inbox.lines.shrink_to(KEPT_BYTES);
                lost += std::mem::take(&mut inbox.lost);
                tracks.append(&mut inbox.tracks);
                if inbox.is_closing && deadline.is_none() {
                    deadline = Some(Instant::now() + LAST_WAIT);
                }
            }
            let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            tracks.retain_mut(|track| {
                let is_done = track.collect(&mut lines, is_late, |lines| {
                    self.write(lines);
                    lines.clear();
                });
                // A stream that its owner has dropped gets no further entries.
                !(is_done && track.is_abandoned())
            });
            self.write(&lines);
            lines.clear();
            lines.shrink_to(KEPT_BYTES);
            if deadline.is_some() {
                if is_late || tracks.iter().all(Collector::is_idle) {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.finish(lost);
    }

    /// The closing bracket, behind a last line without a comma.
    fn finish(&mut self, lost: u64) {
        let mut line = Vec::new();
        // Viewers ignore metadata that they do not know.
        line.extend(
            b"{\"ph\":\"M\",\"pid\":0,\"tid\":0,\"name\":\"halite_trace_end\",\"args\":{\"lost_notes\":",
        );
        json::number(&mut line, lost);
        line.extend(b"}}");
        line.extend(END);
        self.write(&line);
    }

    fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.has_failed {
            return;
        }
        if let Err(error) = self.out.write_all(bytes) {
            // Whoever computes must not fail because of its trace.
            self.has_failed = true;
            log::error!("the trace '{}' ends here: {error}", self.path.display());
        }
    }
}

const END: &[u8; 3] = b"\n]\n";

/// `path` with the number of this process for `%p`.
fn expanded(path: &Path) -> PathBuf {
    match path.to_str() {
        Some(text) if text.contains("%p") => text.replace("%p", &std::process::id().to_string()).into(),
        _ => path.to_owned(),
    }
}

/// Opens the file for a new timeline, or behind the end of one that this process has written before.
fn create(path: &Path, is_continued: bool) -> std::result::Result<File, String> {
    let advice = |error: io::Error| {
        format!("{error}; name a file in a folder that is there and that you may write to")
    };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(advice)?;
    let about = file.metadata().map_err(advice)?;
    // A device or a pipe has neither a length nor a lock of its own.
    if about.is_file() {
        // What this process wrote there before may just be coming to its end, on another thread.
        let deadline = Instant::now() + if is_continued { 2 * LAST_WAIT } else { Duration::ZERO };
        loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(TICK),
                Err(TryLockError::WouldBlock) => {
                    return Err("another process is writing it; put %p into the name".into());
                }
                // Some file systems have no locks.
                Ok(()) | Err(TryLockError::Error(_)) => break,
            }
        }
        let about = file.metadata().map_err(advice)?;
        if is_continued && ends_as_we_end(&mut file).unwrap_or(false) {
            file.set_len(about.len() - END.len() as u64).map_err(advice)?;
            file.seek(SeekFrom::End(0)).map_err(advice)?;
            file.write_all(b",\n").map_err(advice)?;
            return Ok(file);
        }
        file.set_len(0).map_err(advice)?;
        file.rewind().map_err(advice)?;
    }
    file.write_all(b"[\n").map_err(advice)?;
    Ok(file)
}

fn ends_as_we_end(file: &mut File) -> io::Result<bool> {
    let mut tail = [0; END.len()];
    file.seek(SeekFrom::End(-(END.len() as i64)))?;
    file.read_exact(&mut tail)?;
    Ok(tail == *END)
}
