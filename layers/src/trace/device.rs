//! A device whose calls are noted.

use crate::trace::Detail;
use crate::trace::file::{TraceFile, fresh_process, nanoseconds};
use crate::trace::json::{self, When, number_field, text_field};
use crate::trace::steps::{self, Steps};
use crate::trace::stream::TraceStream;
use halite_hal::annotate::{self, Listener, Listening, Note};
use halite_hal::{
    Buffer, CommandList, Device, DeviceInfo, Health, HostMemory, Kernel, KernelSource, MemoryInfo,
    MemoryKind, RecordedCommand, Result, driver,
};
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Described command lists that are kept; beyond, all are described again as they are replayed.
const MOST_LISTS: usize = 1024;

/// The layer's device.
pub(crate) struct TraceDevice {
    shared: Arc<Shared>,
    _listening: Listening,
}

/// What the device, its streams and whoever makes notes about it share.
pub(crate) struct Shared {
    pub(crate) inner: Device,
    pub(crate) log: Arc<Log>,
    pub(crate) detail: Detail,
    streams: AtomicU32,
    lists: Mutex<HashMap<u64, Arc<Steps>>>,
}

/// A device's process in the timeline.
pub(crate) struct Log {
    pub(crate) file: Arc<TraceFile>,
    pub(crate) process: u32,
    /// Bytes in live buffers.
    used_bytes: Mutex<u64>,
    /// The pool's bytes as last written, since most evaluations change none.
    pool_bytes: Mutex<(u64, u64, u64)>,
}

impl TraceDevice {
    pub(crate) fn new(inner: Device, file: Arc<TraceFile>, detail: Detail) -> Result<Self> {
        let process = fresh_process();
        file.name_process(process, &format!("{}: {}", inner.id(), inner.info().name));
        let log = Arc::new(Log {
            file,
            process,
            used_bytes: Mutex::default(),
            pool_bytes: Mutex::new((u64::MAX, 0, 0)),
        });
        let listening = annotate::listen(inner.id(), log.clone());
        let shared =
            Arc::new(Shared { inner, log, detail, streams: AtomicU32::new(1), lists: Mutex::default() });
        Ok(Self { shared, _listening: listening })
    }
}

impl TraceDevice {
    /// A stream that was made since `begin`.
    fn wrap(
        &self,
        begin: Instant,
        inner: Box<dyn driver::Stream>,
        peer: Option<&Device>,
    ) -> Box<dyn driver::Stream> {
        let number = self.shared.fresh_stream();
        let stream = TraceStream::new(inner, self.shared.clone(), number);
        self.shared.log.span("create stream", begin, |out| {
            number_field(out, "stream", number.into());
            if let Some(peer) = peer {
                text_field(out, "peer", &peer.id().to_string());
            }
        });
        Box::new(stream)
    }
}

impl Shared {
    /// The description of a command list, made when it is replayed first.
    pub(crate) fn steps(&self, list: &CommandList) -> Arc<Steps> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(steps) = lists.get(&list.id()) {
            return steps.clone();
        }
        if lists.len() >= MOST_LISTS {
            lists.clear();
        }
        let steps = Arc::new(Steps::new(list));
        lists.insert(list.id(), steps.clone());
        steps
    }

    /// A number for a new stream of this device, from 1.
    pub(crate) fn fresh_stream(&self) -> u32 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }
}

impl Log {
    /// Notes what the calling thread has done since `begin`.
    pub(crate) fn span(&self, name: &str, begin: Instant, fields: impl FnOnce(&mut Vec<u8>)) {
        let end = nanoseconds(Instant::now());
        let part = json::part(name, "host", fields);
        self.file.note(self.process, When::Span { begin: nanoseconds(begin), end }, &part);
    }
}

impl Log {
    /// Changes the bytes in live buffers, and notes them.
    fn count(&self, change: impl FnOnce(u64) -> u64) {
        // Held while the note is made, so that notes stand in the order of the changes.
        let mut used = self.used_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *used = change(*used);
        let part = json::part("allocated", "memory", |out| number_field(out, "bytes", *used));
        self.file.note(self.process, When::Counter(nanoseconds(Instant::now())), &part);
    }
}

/// Attached to a buffer, whose end it notes.
struct Freed {
    len_bytes: u64,
    log: Arc<Log>,
}

impl Drop for Freed {
    fn drop(&mut self) {
        self.log.count(|used| used.saturating_sub(self.len_bytes));
    }
}

impl Listener for Log {
    fn note(&self, note: &Note<'_>) {
        match note {
            Note::Span { label, begin, end } => {
                let part = json::part(&label.name, "host", |out| steps::details(out, Some(label)));
                let span = When::Span { begin: nanoseconds(*begin), end: nanoseconds(*end) };
                self.file.note(self.process, span, &part);
            }
            Note::Fallback { op, reason, target } => {
                let part = json::part(&format!("fallback: {op}"), "fallback", |out| {
                    text_field(out, "op", op);
                    text_field(out, "reason", reason);
                    text_field(out, "to", &target.to_string());
                });
                self.file.note(self.process, When::At(nanoseconds(Instant::now())), &part);
            }
            Note::Pool(stats) => {
                let now = (stats.in_use_bytes, stats.reserved_bytes, stats.pending_bytes);
                let mut last = self.pool_bytes.lock().unwrap_or_else(PoisonError::into_inner);
                if std::mem::replace(&mut *last, now) == now {
                    return;
                }
                // Viewers stack a counter's values, so that these make up what is reserved.
                let free = stats.reserved_bytes.saturating_sub(stats.in_use_bytes + stats.pending_bytes);
                let part = json::part("pool", "memory", |out| {
                    number_field(out, "in use", stats.in_use_bytes);
                    number_field(out, "pending", stats.pending_bytes);
                    number_field(out, "free", free);
                });
                self.file.note(self.process, When::Counter(nanoseconds(Instant::now())), &part);
            }
            _ => {}
        }
    }
}

impl driver::Device for TraceDevice {
    fn info(&self) -> &DeviceInfo {
        self.shared.inner.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.shared.inner.driver().memory()
    }

    fn health(&self) -> Health {
        self.shared.inner.driver().health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        let begin = Instant::now();
        let result = self.shared.inner.driver().allocate(len_bytes, kind);
        let log = &self.shared.log;
        log.span("allocate", begin, |out| {
            number_field(out, "bytes", len_bytes);
            text_field(out, "kind", &format!("{kind:?}"));
            failure(out, &result);
        });
        let buffer = result?;
        log.count(|used| used + len_bytes);
        Ok(buffer.attach(len_bytes, Box::new(Freed { len_bytes, log: log.clone() })))
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        let begin = Instant::now();
        let result = self.shared.inner.driver().import(memory);
        // It is no memory of the device's, so it changes nothing in what is allocated.
        self.shared.log.span("import", begin, |out| {
            number_field(out, "bytes", memory.len_bytes() as u64);
            failure(out, &result);
        });
        result
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        let begin = Instant::now();
        Ok(self.wrap(begin, self.shared.inner.driver().create_stream()?, None))
    }

    fn create_peer_stream(&self, peer: &Device) -> Result<Box<dyn driver::Stream>> {
        let begin = Instant::now();
        Ok(self.wrap(begin, self.shared.inner.driver().create_peer_stream(peer)?, Some(peer)))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        let begin = Instant::now();
        let result = self.shared.inner.driver().load(source);
        self.shared.log.span("load", begin, |out| {
            text_field(out, "kernel", source.name());
            text_field(out, "format", source.format());
            failure(out, &result);
        });
        result
    }

    fn isolates_allocations(&self) -> bool {
        self.shared.inner.isolates_allocations()
    }

    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>> {
        self.shared.inner.driver().prepare(commands)
    }

    fn inner(&self) -> Option<&Device> {
        Some(&self.shared.inner)
    }
}

fn failure<T>(out: &mut Vec<u8>, result: &Result<T>) {
    if let Err(error) = result {
        text_field(out, "failed", &error.to_string());
    }
}
