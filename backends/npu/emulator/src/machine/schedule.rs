//! The blocks of a launch on host threads.
//!
//! Blocks of most kernels do not depend on each other and spread over threads. Those that add to memory
//! run one after the other, so that sums are the same each time; those that wait for each other take turns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use halite_npu_isa::{CoreKind, Inst, Kernel};

use super::config::MachineConfig;
use super::core::{Core, CrossFlags, LocalMemories, Pause};
use super::error::{Fault, LaunchError, Trap};
use super::memory::View;
use super::observer::{LaunchReport, Observer};

/// Launches that are estimated to take less than this stay on the caller's thread.
const WORTH_THREADS: Duration = Duration::from_micros(150);

pub(super) struct Launch<'a> {
    config: &'a MachineConfig,
    global: View,
    idle: &'a Mutex<Vec<LocalMemories>>,
    kernel: &'a Kernel,
    blocks: u32,
    args: &'a [i64],
}

impl<'a> Launch<'a> {
    pub(super) fn new(
        config: &'a MachineConfig,
        global: View,
        idle: &'a Mutex<Vec<LocalMemories>>,
        kernel: &'a Kernel,
        blocks: u32,
        args: &'a [i64],
    ) -> Self {
        Self { config, global, idle, kernel, blocks, args }
    }

    pub(super) fn run(&self, observer: Option<&mut dyn Observer>) -> Result<LaunchReport, LaunchError> {
        let code = self.kernel.code();
        if code.iter().any(Inst::crosses_blocks) {
            return self.in_turns(observer);
        }
        if observer.is_some() || code.iter().any(Inst::is_atomic) || self.config.host_threads <= 1 {
            return self.in_order(0, observer);
        }
        self.on_threads()
    }

    /// Block by block from `first` on.
    fn in_order(
        &self,
        first: u32,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<LaunchReport, LaunchError> {
        let mut report = LaunchReport::default();
        for block in first..self.blocks {
            report.add(&self.block(block, observer.as_mut().map(|observer| &mut **observer as _))?);
        }
        Ok(report)
    }

    /// The first block here, to see how long one takes, and the others wherever it pays.
    fn on_threads(&self) -> Result<LaunchReport, LaunchError> {
        if self.blocks <= 1 {
            return self.in_order(0, None);
        }
        let started = Instant::now();
        let mut report = self.block(0, None)?;
        if started.elapsed() * (self.blocks - 1) < WORTH_THREADS {
            report.add(&self.in_order(1, None)?);
            return Ok(report);
        }

        let next = AtomicU32::new(1);
        let stop = AtomicBool::new(false);
        let work = || {
            let mut report = LaunchReport::default();
            while !stop.load(Relaxed) {
                let block = next.fetch_add(1, Relaxed);
                if block >= self.blocks {
                    break;
                }
                match self.block(block, None) {
                    Ok(counts) => report.add(&counts),
                    Err(trap) => {
                        stop.store(true, Relaxed);
                        return Err(trap);
                    }
                }
            }
            Ok(report)
        };
        let others = (self.config.host_threads - 1).min(self.blocks as usize - 2);
        let results = std::thread::scope(|scope| {
            let spawn =
                |_| std::thread::Builder::new().name("halite-npu".to_owned()).spawn_scoped(scope, work);
            let threads: Vec<_> = (0..others).map(spawn).collect();
            let mut results = vec![work()];
            // A thread that the host refuses is no loss: the others take its blocks.
            let joined = threads.into_iter().flatten().map(|thread| {
                thread.join().unwrap_or_else(|panic| {
                    Err(Box::new(self.trap(0, 0, Fault::Internal { message: panic_message(&*panic) })))
                })
            });
            results.extend(joined);
            results
        });
        // Of several traps the lowest block's is reported, which is nearly always the same one.
        let mut first_trap: Option<Box<Trap>> = None;
        for result in results {
            match result {
                Ok(counts) => report.add(&counts),
                Err(trap) => {
                    if first_trap.as_ref().is_none_or(|first| trap.block < first.block) {
                        first_trap = Some(trap);
                    }
                }
            }
        }
        first_trap.map_or(Ok(report), |trap| Err(trap.into()))
    }

    /// All blocks alive at once, each until it must wait.
    fn in_turns(&self, mut observer: Option<&mut dyn Observer>) -> Result<LaunchReport, LaunchError> {
        let kind = self.kernel.core();
        let cores = if kind == CoreKind::Cube { self.config.cube_cores } else { self.config.vector_cores };
        if self.blocks > cores {
            let (kernel, blocks) = (self.kernel.name().to_owned(), self.blocks);
            return Err(LaunchError::TooManyBlocks { kernel, kind, cores, blocks });
        }
        let mut cross = CrossFlags::new(self.blocks);
        let cores = (0..self.blocks).map(|block| Ok((self.core(block)?, None)));
        let mut blocks: Vec<_> = cores.collect::<Result<_, Box<Trap>>>()?;
        loop {
            let mut progress = false;
            for (core, pause) in &mut blocks {
                let may_run = match *pause {
                    None => true,
                    Some(Pause::CrossFlag(id)) => cross.is_raised(core.block(), id),
                    Some(Pause::Done | Pause::SyncAll) => false,
                };
                if may_run {
                    progress = true;
                    let observer = observer.as_mut().map(|observer| &mut **observer as _);
                    *pause = Some(self.step(core, &mut cross, observer)?);
                }
            }
            let states = || blocks.iter().map(|(_, pause)| *pause);
            if states().all(|pause| pause == Some(Pause::Done)) {
                break;
            }
            if states().all(|pause| pause == Some(Pause::SyncAll)) {
                blocks.iter_mut().for_each(|(_, pause)| *pause = None);
            } else if !progress {
                let (core, _) = blocks
                    .iter()
                    .find(|(_, pause)| *pause != Some(Pause::Done))
                    .expect("not all blocks are done");
                let waiting: Vec<String> = blocks
                    .iter()
                    .map(|(core, pause)| match pause {
                        Some(Pause::SyncAll) => format!("block {} waits for all blocks", core.block()),
                        Some(Pause::CrossFlag(id)) => format!("block {} waits for flag {id}", core.block()),
                        _ => format!("block {} has ended", core.block()),
                    })
                    .collect();
                let fault = Fault::Deadlock { waiting: waiting.join(", ") };
                return Err(Box::new(self.trap(core.block(), core.pc(), fault)).into());
            }
        }
        let mut report = LaunchReport::default();
        for (core, _) in blocks {
            report.add(&core.report);
            self.give_back(core.memories);
        }
        Ok(report)
    }

    fn block(
        &self,
        block: u32,
        observer: Option<&mut (dyn Observer + '_)>,
    ) -> Result<LaunchReport, Box<Trap>> {
        let mut core = self.core(block)?;
        // The kernel has no instruction that looks at other blocks.
        self.step(&mut core, &mut CrossFlags::new(0), observer)?;
        let report = core.report;
        self.give_back(core.memories);
        Ok(report)
    }

    fn step(
        &self,
        core: &mut Core<'_>,
        cross: &mut CrossFlags,
        observer: Option<&mut (dyn Observer + '_)>,
    ) -> Result<Pause, Box<Trap>> {
        let result = catch_unwind(AssertUnwindSafe(|| core.run(cross, observer)))
            .unwrap_or_else(|panic| Err(Fault::Internal { message: panic_message(&*panic) }));
        result.map_err(|fault| Box::new(self.trap(core.block(), core.pc(), fault)))
    }

    fn core(&self, block: u32) -> Result<Core<'_>, Box<Trap>> {
        let kind = self.kernel.core();
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().position(|memories| memories.core == kind).map(|at| idle.swap_remove(at))
        };
        let memories = match idle {
            Some(memories) => memories,
            None => {
                LocalMemories::new(self.config, kind).map_err(|fault| Box::new(self.trap(block, 0, fault)))?
            }
        };
        Ok(Core::new(self.config, &self.global, memories, self.kernel, self.args, block, self.blocks))
    }

    fn give_back(&self, memories: LocalMemories) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.config.host_threads.saturating_mul(2) {
            idle.push(memories);
        }
    }

    fn trap(&self, block: u32, pc: usize, fault: Fault) -> Trap {
        let mut instruction = String::new();
        if let Some(inst) = self.kernel.code().get(pc) {
            inst.print(&mut instruction);
        }
        Trap { kernel: self.kernel.name().to_owned(), block, pc, instruction, fault }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
