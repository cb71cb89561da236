//! From fused units to a plan: kernel variants chosen and loaded, every value placed, commands recorded.
//!
//! A plan depends on structure alone (ops, shapes, dtypes, which nodes are wanted or may be overwritten), so a
//! training loop plans once and replays.

use crate::access::ValueIndex;
use crate::custom;
use crate::engine::Engine;
use crate::fuse::{Fused, PlanNode, Unit, fuse};
use crate::label::unit_label;
use crate::lower::{KernelOp, LaunchArg, LowerRequest, Lowered, TensorType};
use crate::{Error, Result};
use halite_hal::annotate::{self, Label};
use halite_hal::{
    BufferSlice, CommandList, CommandListBuilder, ErrorKind, Kernel, KernelSource, RecordedArg,
    RecordedCommand, RecordedRange, Scalar,
};
use halite_profiles::{Candidate, Fallback, Parameters};
use std::collections::HashMap;
use std::sync::Arc;

/// Every range of an arena starts at a multiple of this, or of the device's own alignment if that is larger.
const ARENA_ALIGNMENT: u64 = 256;

/// Where a value lies while a plan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the memory of this leaf node.
    Leaf(usize),
    /// In output allocation `n`.
    Output(usize),
    /// In the arena, from this byte on.
    Arena(u64),
}

/// The memory that an output node gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputMemory {
    /// A new allocation: number `n` of [`Plan::allocations`].
    New(usize),
    /// Shared with a leaf that keeps it.
    Shared(usize),
    /// Taken over from a leaf that nobody else holds: the node's value overwrote it.
    Donated(usize),
}

/// What a replay binds to a buffer slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Leaf(usize),
    Output(usize),
    Arena,
}

/// Work on one device, in order with the plan's other regions.
pub(crate) enum Region {
    /// From here on, launches overwrite donated memory.
    Updates,
    /// Commands of the engine's own device.
    Device {
        list: CommandList,
        slots: Vec<Slot>,
        /// Nodes whose runtime scalars fill the list's scalar slots.
        scalars: Vec<usize>,
    },
    /// A unit that the device has no kernel for, run on the fallback engine with copies through the host.
    Fallback(FallbackRegion),
}

pub(crate) struct FallbackRegion {
    pub(crate) list: CommandList,
    pub(crate) scalars: Vec<usize>,
    pub(crate) inputs: Vec<(Place, u64)>,
    pub(crate) outputs: Vec<(Place, u64)>,
    pub(crate) workspace_bytes: u64,
    pub(crate) op: String,
    pub(crate) reason: String,
}

/// One launch of a plan, for people and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchInfo {
    /// The operation.
    pub op: String,
    /// The kernel variant that the profile chose.
    pub variant: String,
    /// Sizes that the profile gave it.
    pub parameters: Parameters,
    /// The kernel's name.
    pub kernel: String,
    /// Workgroups per axis.
    pub grid: [u32; 3],
    /// The device that runs it.
    pub device: String,
}

/// A recorded evaluation.
pub(crate) struct Plan {
    pub(crate) regions: Vec<Region>,
    /// Bytes of each new output allocation.
    pub(crate) allocations: Vec<u64>,
    /// Output nodes and their memory.
    pub(crate) outputs: Vec<(usize, OutputMemory)>,
    pub(crate) arena_bytes: u64,
    pub(crate) launches: Vec<LaunchInfo>,
}

/// A unit with its kernels.
struct LoweredUnit {
    unit: Unit,
    kernels: Vec<(Kernel, [u32; 3], Vec<LaunchArg>)>,
    workspace_bytes: u64,
    fallback_reason: Option<String>,
    /// For layers that watch the device; `None` while none does.
    label: Option<Label>,
}

impl Plan {
    /// Plans `nodes`; `donatable[i]` says that leaf `i` may be overwritten.
    pub(crate) fn new(engine: &Engine, nodes: &[PlanNode], donatable: &[bool]) -> Result<Self> {
        let fused = fuse(nodes);
        let mut planner = Planner::new(engine, fused, donatable);
        planner.move_updates_last();
        let lowered = planner.lower()?;
        planner.place_outputs(&lowered);
        planner.place_arena(&lowered);
        planner.record(lowered)
    }
}

struct Planner<'a> {
    engine: &'a Engine,
    fused: Fused,
    donatable: &'a [bool],
    places: Vec<Option<Place>>,
    allocations: Vec<u64>,
    outputs: Vec<(usize, OutputMemory)>,
    arena_bytes: u64,
    /// First byte of each unit's workspace in the arena.
    workspaces: Vec<u64>,
    launches: Vec<LaunchInfo>,
}

impl<'a> Planner<'a> {
    fn new(engine: &'a Engine, fused: Fused, donatable: &'a [bool]) -> Self {
        let places = fused.values.iter().map(|value| value.leaf.map(Place::Leaf)).collect();
        Self {
            engine,
            fused,
            donatable,
            places,
            allocations: Vec::new(),
            outputs: Vec::new(),
            arena_bytes: 0,
            workspaces: Vec::new(),
            launches: Vec::new(),
        }
    }

    /// Gives every output its memory: a leaf's own, a donated leaf's, or a new allocation.
    fn place_outputs(&mut self, lowered: &[LoweredUnit]) {
        let donations = self.donations(lowered);
        for &(node, value) in &self.fused.outputs {
            let memory = match (self.fused.values[value].leaf, donations.get(&value)) {
                (Some(leaf), _) => OutputMemory::Shared(leaf),
                (None, Some(&leaf)) => {
                    self.places[value] = Some(Place::Leaf(leaf));
                    OutputMemory::Donated(leaf)
                }
                (None, None) => match self.places[value] {
                    Some(Place::Output(index)) => OutputMemory::New(index),
                    _ => {
                        self.allocations.push(self.fused.values[value].kind.len_bytes() as u64);
                        let index = self.allocations.len() - 1;
                        self.places[value] = Some(Place::Output(index));
                        OutputMemory::New(index)
                    }
                },
            };
            self.outputs.push((node, memory));
        }
    }

    /// Units that nothing else reads (optimiser updates) go behind all others: when an earlier launch fails, the
    /// updates are skipped, and the leaves that they would overwrite are intact for another try.
    fn move_updates_last(&mut self) {
        let mut read = vec![false; self.fused.values.len()];
        for unit in &self.fused.units {
            unit.inputs.iter().for_each(|&value| read[value] = true);
        }
        let is_update = |unit: &Unit| {
            matches!(unit.op, KernelOp::Elementwise(_)) && unit.outputs.iter().all(|&value| !read[value])
        };
        let (updates, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.fused.units).into_iter().partition(is_update);
        self.fused.units = others;
        self.fused.units.extend(updates);
    }

    /// Outputs of trailing elementwise units that may overwrite a donatable leaf, as `(output, leaf)`.
    fn donations(&self, lowered: &[LoweredUnit]) -> HashMap<ValueIndex, usize> {
        let mut last_use: HashMap<ValueIndex, usize> = HashMap::new();
        let mut read = vec![false; self.fused.values.len()];
        for (position, step) in lowered.iter().enumerate() {
            for &value in &step.unit.inputs {
                last_use.insert(value, position);
                read[value] = true;
            }
        }
        // An output that shares a leaf's memory must not see it overwritten.
        let shared: Vec<usize> =
            self.fused.outputs.iter().filter_map(|&(_, value)| self.fused.values[value].leaf).collect();
        let wanted =
            |value: &ValueIndex| self.fused.outputs.iter().filter(|(_, output)| output == value).count() == 1;
        let mut donations = HashMap::new();
        let mut taken: Vec<usize> = Vec::new();
        for (position, LoweredUnit { unit, kernels, fallback_reason, .. }) in lowered.iter().enumerate().rev()
        {
            let KernelOp::Elementwise(cluster) = &unit.op else { break };
            if unit.outputs.iter().any(|&value| read[value]) {
                break;
            }
            // A variant of another crate may not work in place.
            if fallback_reason.is_some() || kernels.iter().any(|(kernel, ..)| !kernel.signature().in_place) {
                continue;
            }
            for &output in unit.outputs.iter().filter(|value| wanted(value)) {
                let kind = &self.fused.values[output].kind;
                let candidate = unit.inputs.iter().zip(&cluster.inputs).find_map(|(&input, view)| {
                    let value = &self.fused.values[input];
                    let leaf = value.leaf?;
                    let fits = self.donatable[leaf]
                        && !taken.contains(&leaf)
                        && !shared.contains(&leaf)
                        && last_use.get(&input) == Some(&position)
                        && unit.inputs.iter().filter(|&&other| other == input).count() == 1
                        && value.kind.dtype.size() == kind.dtype.size()
                        && value.kind.elements() == kind.elements()
                        && view.is_contiguous(&cluster.shape)
                        && cluster.points() == kind.elements();
                    fits.then_some(leaf)
                });
                if let Some(leaf) = candidate {
                    taken.push(leaf);
                    donations.insert(output, leaf);
                }
            }
        }
        donations
    }

    fn lower(&mut self) -> Result<Vec<LoweredUnit>> {
        let units = std::mem::take(&mut self.fused.units);
        let mut lowered = Vec::with_capacity(units.len());
        for unit in units {
            // Units without output elements have nothing to do.
            if unit.outputs.iter().all(|&value| self.fused.values[value].kind.elements() == 0) {
                continue;
            }
            lowered.push(self.lower_unit(unit)?);
        }
        Ok(lowered)
    }

    fn lower_unit(&mut self, unit: Unit) -> Result<LoweredUnit> {
        let kinds = |values: &[ValueIndex]| -> Vec<TensorType> {
            values.iter().map(|&value| self.fused.values[value].kind.clone()).collect()
        };
        let (inputs, outputs) = (kinds(&unit.inputs), kinds(&unit.outputs));
        let refused = match self.engine.lower(&unit.op, &inputs, &outputs) {
            Ok(own) => return self.loaded(unit, self.engine, own, None),
            Err(error) => error,
        };
        let reason = match &refused {
            Error::NoKernel { reason, .. } => reason.clone(),
            // The first line; what follows is the compiler's log.
            Error::Device(error) if is_build_failure(error) => {
                error.to_string().lines().next().unwrap_or_default().to_owned()
            }
            _ => return Err(refused),
        };
        let fallback = match (self.engine.profile().fallback(), self.engine.fallback_engine()) {
            (Fallback::Cpu, Some(fallback)) => fallback.clone(),
            _ => return Err(refused),
        };
        match (fallback.lower(&unit.op, &inputs, &outputs), refused) {
            (Ok(own), _) => self.loaded(unit, &fallback, own, Some(reason)),
            (
                Err(Error::NoKernel { device: other, reason: theirs, .. }),
                Error::NoKernel { device, op, .. },
            ) => Err(Error::NoKernel { device, op, reason: format!("{reason}; nor on {other}: {theirs}") }),
            (Err(Error::NoKernel { .. }), refused) => Err(refused),
            (Err(error), _) => Err(error),
        }
    }

    fn loaded(
        &mut self,
        unit: Unit,
        engine: &Engine,
        chosen: ChosenKernel,
        fallback_reason: Option<String>,
    ) -> Result<LoweredUnit> {
        for (kernel, grid, _) in &chosen.kernels {
            self.launches.push(LaunchInfo {
                op: unit.op.name().to_owned(),
                variant: chosen.variant.clone(),
                parameters: chosen.parameters.clone(),
                kernel: kernel.name().to_owned(),
                grid: *grid,
                device: engine.device().id().to_string(),
            });
        }
        let kinds = |values: &[ValueIndex]| -> Vec<TensorType> {
            values.iter().map(|&value| self.fused.values[value].kind.clone()).collect()
        };
        let label = annotate::is_listening().then(|| {
            let (inputs, outputs) = (kinds(&unit.inputs), kinds(&unit.outputs));
            unit_label(&unit.op, &inputs, &outputs, &chosen.variant, fallback_reason.as_deref())
        });
        Ok(LoweredUnit {
            unit,
            kernels: chosen.kernels,
            workspace_bytes: chosen.workspace_bytes,
            fallback_reason,
            label,
        })
    }

    /// Places intermediate values and workspaces in one arena, so that ranges whose lifetimes meet do not overlap:
    /// the largest first, each at the lowest free offset. Where a layer wants memory apart, to see what goes beyond
    /// it, each value gets an allocation instead.
    fn place_arena(&mut self, lowered: &[LoweredUnit]) {
        struct Range {
            bytes: u64,
            first: usize,
            last: usize,
            target: Result<ValueIndex, usize>,
        }
        let alignment = self.engine.device().info().limits.offset_alignment_bytes.max(ARENA_ALIGNMENT);
        let is_apart = self.engine.device().isolates_allocations();
        let mut by_value: HashMap<ValueIndex, Range> = HashMap::new();
        let mut ranges = Vec::new();
        for (position, step) in lowered.iter().enumerate() {
            for &value in &step.unit.outputs {
                if self.places[value].is_none() {
                    let bytes = self.fused.values[value].kind.len_bytes() as u64;
                    if is_apart {
                        self.places[value] = Some(Place::Output(self.allocations.len()));
                        self.allocations.push(bytes);
                        continue;
                    }
                    by_value
                        .insert(value, Range { bytes, first: position, last: position, target: Ok(value) });
                }
            }
            for value in &step.unit.inputs {
                if let Some(range) = by_value.get_mut(value) {
                    range.last = position;
                }
            }
            if step.workspace_bytes > 0 && step.fallback_reason.is_none() {
                let bytes = step.workspace_bytes;
                ranges.push(Range { bytes, first: position, last: position, target: Err(position) });
            }
        }
        ranges.extend(by_value.into_values());
        ranges.sort_by_key(|range| (std::cmp::Reverse(range.bytes), range.first, range.last));
        self.workspaces = vec![0; lowered.len()];
        // Ranges already placed, in order of their offsets, with the launches during which they live.
        let mut placed: Vec<(u64, u64, usize, usize)> = Vec::new();
        for range in ranges {
            let mut offset = 0;
            let meets = |first: usize, last: usize| first <= range.last && range.first <= last;
            for &(start, end, ..) in placed.iter().filter(|&&(_, _, first, last)| meets(first, last)) {
                if offset + range.bytes <= start {
                    break;
                }
                offset = offset.max(end.next_multiple_of(alignment));
            }
            let end = offset + range.bytes;
            self.arena_bytes = self.arena_bytes.max(end);
            let place = placed.partition_point(|&(start, ..)| start <= offset);
            placed.insert(place, (offset, end, range.first, range.last));
            match range.target {
                Ok(value) => self.places[value] = Some(Place::Arena(offset)),
                Err(position) => self.workspaces[position] = offset,
            }
        }
    }

    /// Whether a computed value overwrites a leaf's memory.
    fn is_donated(&self, value: ValueIndex) -> bool {
        self.fused.values[value].leaf.is_none() && matches!(self.places[value], Some(Place::Leaf(_)))
    }

    /// Where a value lies. Values without elements were never placed: nothing reads them.
    fn place(&self, value: ValueIndex) -> Place {
        self.places[value].unwrap_or(Place::Arena(0))
    }

    fn len_bytes(&self, value: ValueIndex) -> u64 {
        self.fused.values[value].kind.len_bytes() as u64
    }

    fn record(self, lowered: Vec<LoweredUnit>) -> Result<Plan> {
        let mut regions = Vec::new();
        let mut open = Recorder::default();
        for (position, mut step) in lowered.into_iter().enumerate() {
            let _label = annotate::scope(|| step.label.take().unwrap_or_default());
            let is_update = step.unit.outputs.iter().any(|&value| self.is_donated(value));
            if is_update && !regions.iter().any(|region| matches!(region, Region::Updates)) {
                self.close(&mut open, &mut regions)?;
                regions.push(Region::Updates);
            }
            if step.fallback_reason.is_some() {
                self.close(&mut open, &mut regions)?;
                regions.push(Region::Fallback(self.record_fallback(step)?));
                continue;
            }
            let workspace = self.workspaces[position];
            for (kernel, grid, args) in &step.kernels {
                let args = args
                    .iter()
                    .map(|arg| match *arg {
                        LaunchArg::Input(n) => self.buffer(&mut open, step.unit.inputs[n]),
                        LaunchArg::Output(n) => self.buffer(&mut open, step.unit.outputs[n]),
                        LaunchArg::Workspace { offset, len } => {
                            let slot = open.slot(Slot::Arena);
                            RecordedArg::Buffer(RecordedRange::Slot { slot, offset: workspace + offset, len })
                        }
                        LaunchArg::Scalar(n) => RecordedArg::ScalarSlot(open.scalar(step.unit.scalars[n])),
                        LaunchArg::Literal(scalar) => RecordedArg::Scalar(scalar),
                    })
                    .collect();
                open.commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: *grid, args });
            }
        }
        self.close(&mut open, &mut regions)?;
        Ok(Plan {
            regions,
            allocations: self.allocations,
            outputs: self.outputs,
            arena_bytes: self.arena_bytes,
            launches: self.launches,
        })
    }

    fn close(&self, open: &mut Recorder, regions: &mut Vec<Region>) -> Result<()> {
        let Recorder { commands, slots, scalars } = std::mem::take(open);
        if !commands.is_empty() {
            let list = self.engine.device().finish(commands)?;
            regions.push(Region::Device { list, slots, scalars });
        }
        Ok(())
    }

    fn buffer(&self, open: &mut Recorder, value: ValueIndex) -> RecordedArg {
        let (slot, offset) = match self.place(value) {
            Place::Leaf(leaf) => (Slot::Leaf(leaf), 0),
            Place::Output(output) => (Slot::Output(output), 0),
            Place::Arena(offset) => (Slot::Arena, offset),
        };
        let slot = open.slot(slot);
        RecordedArg::Buffer(RecordedRange::Slot { slot, offset, len: self.len_bytes(value) })
    }

    /// Records a unit for the fallback device: slots are its inputs, its outputs, then the workspace.
    fn record_fallback(&self, step: LoweredUnit) -> Result<FallbackRegion> {
        let engine = self.engine.fallback_engine().ok_or_else(|| no_fallback(self.engine, &step))?;
        let (inputs, outputs) = (&step.unit.inputs, &step.unit.outputs);
        let mut commands = CommandListBuilder::new();
        for (kernel, grid, args) in &step.kernels {
            let whole = |slot: usize, value: ValueIndex| {
                RecordedArg::Buffer(RecordedRange::Slot { slot, offset: 0, len: self.len_bytes(value) })
            };
            let args = args
                .iter()
                .map(|arg| match *arg {
                    LaunchArg::Input(n) => whole(n, inputs[n]),
                    LaunchArg::Output(n) => whole(inputs.len() + n, outputs[n]),
                    LaunchArg::Workspace { offset, len } => {
                        let slot = inputs.len() + outputs.len();
                        RecordedArg::Buffer(RecordedRange::Slot { slot, offset, len })
                    }
                    LaunchArg::Scalar(n) => RecordedArg::ScalarSlot(n),
                    LaunchArg::Literal(scalar) => RecordedArg::Scalar(scalar),
                })
                .collect();
            commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: *grid, args });
        }
        let places =
            |values: &[ValueIndex]| values.iter().map(|&v| (self.place(v), self.len_bytes(v))).collect();
        Ok(FallbackRegion {
            list: engine.device().finish(commands)?,
            scalars: step.unit.scalars.clone(),
            inputs: places(inputs),
            outputs: places(outputs),
            workspace_bytes: step.workspace_bytes,
            op: step.unit.op.name().to_owned(),
            reason: step.fallback_reason.unwrap_or_default(),
        })
    }
}

fn no_fallback(engine: &Engine, step: &LoweredUnit) -> Error {
    Error::NoKernel {
        device: engine.device().id().to_string(),
        op: step.unit.op.name().to_owned(),
        reason: step.fallback_reason.clone().unwrap_or_default(),
    }
}

/// Commands of a region that is being recorded, with the slots that they use.
#[derive(Default)]
struct Recorder {
    commands: CommandListBuilder,
    slots: Vec<Slot>,
    scalars: Vec<usize>,
}

impl Recorder {
    fn slot(&mut self, slot: Slot) -> usize {
        self.slots.iter().position(|own| *own == slot).unwrap_or_else(|| {
            self.slots.push(slot);
            self.slots.len() - 1
        })
    }

    fn scalar(&mut self, node: usize) -> usize {
        self.scalars.iter().position(|own| *own == node).unwrap_or_else(|| {
            self.scalars.push(node);
            self.scalars.len() - 1
        })
    }
}

/// The variant that serves an op, with its loaded kernels.
#[derive(Clone)]
pub(crate) struct ChosenKernel {
    pub(crate) variant: String,
    pub(crate) parameters: Parameters,
    pub(crate) kernels: Vec<(Kernel, [u32; 3], Vec<LaunchArg>)>,
    pub(crate) workspace_bytes: u64,
}

impl Engine {
    /// Asks the profile for a variant, lowers `op` with it, and loads the kernels. Remembers the answer.
    pub(crate) fn lower(
        &self,
        op: &KernelOp,
        inputs: &[TensorType],
        outputs: &[TensorType],
    ) -> Result<ChosenKernel> {
        // The debug form names every attribute; custom ops have none in it and are not remembered.
        let key = (!matches!(op, KernelOp::Custom(_))).then(|| format!("{op:?} {inputs:?} {outputs:?}"));
        if let Some(known) = key.as_ref().and_then(|key| self.remembered_kernel(key)) {
            return Ok(known);
        }
        let chosen = self.lower_anew(op, inputs, outputs)?;
        if let Some(key) = key {
            self.remember_kernel(key, &chosen);
        }
        Ok(chosen)
    }

    fn lower_anew(
        &self,
        op: &KernelOp,
        inputs: &[TensorType],
        outputs: &[TensorType],
    ) -> Result<ChosenKernel> {
        let info = self.device().info();
        let variants: Vec<_> =
            self.catalog().variants_of(op.name()).filter(|v| info.accepts(&v.format)).collect();
        // A profile may name what a compiler that is not there would make; it is passed over.
        let entries = self.profile().kernel_entries(op.name());
        let others: Vec<_> = self
            .catalog()
            .variants_of(op.name())
            .filter(|v| !info.accepts(&v.format) && custom::speaks(info, &v.format))
            .filter(|v| entries.iter().any(|entry| entry.variant() == v.name))
            .filter(|v| variants.iter().all(|own| own.name != v.name))
            .collect();
        let requires: Vec<Vec<&str>> =
            variants.iter().map(|variant| variant.requires.iter().map(String::as_str).collect()).collect();
        let candidates: Vec<Candidate<'_>> = variants
            .iter()
            .zip(&requires)
            .map(|(variant, requires)| Candidate { variant: &variant.name, requires })
            .chain(
                others.iter().map(|variant| Candidate { variant: &variant.name, requires: &["a compiler"] }),
            )
            .collect();
        let no_kernel = |reason: String| Error::NoKernel {
            device: info.id.to_string(),
            op: op.name().to_owned(),
            reason,
        };
        if variants.is_empty() {
            let formats = info.kernel_formats.join(", ");
            return Err(no_kernel(format!("no variant is registered for its formats ({formats})")));
        }
        let ranking = match self.profile().ranking(op.name(), &candidates, &info.features, &op.variables()) {
            Ok(ranking) => ranking,
            Err(error @ halite_profiles::Error::NoKernel { .. }) => return Err(no_kernel(error.to_string())),
            Err(error) => return Err(Error::Profile(error.to_string())),
        };
        let mut reasons = Vec::new();
        let mut build_failure = None;
        for choice in ranking {
            let Some(variant) = variants.iter().find(|variant| variant.name == choice.variant) else {
                continue;
            };
            let parameters = &choice.parameters;
            let local_staging = self.profile().memory().local_staging;
            let request = LowerRequest { op, inputs, outputs, parameters, local_staging, device: info };
            let lowered = match (variant.lower)(&request) {
                Ok(lowered) => lowered,
                Err(unservable) => {
                    reasons.push(format!("{}: {unservable}", variant.name));
                    continue;
                }
            };
            check_arguments(&variant.name, &request, &lowered)?;
            match self.load_all(&variant.name, parameters, lowered) {
                // Whether a vendor's library has an operation shows when it is loaded.
                Err(Error::Device(error)) if *error.kind() == ErrorKind::Unsupported => {
                    reasons.push(format!("{}: {error}", variant.name));
                }
                Err(Error::Device(error)) if is_build_failure(&error) => {
                    build_failure.get_or_insert(error);
                }
                loaded => return loaded,
            }
        }
        Err(build_failure.map_or_else(|| no_kernel(reasons.join("; ")), Error::Device))
    }

    fn load_all(&self, variant: &str, parameters: &Parameters, lowered: Lowered) -> Result<ChosenKernel> {
        let mut workspace_bytes = lowered.workspace_bytes;
        let alignment = self.device().info().limits.offset_alignment_bytes.max(ARENA_ALIGNMENT);
        let mut kernels = Vec::with_capacity(lowered.launches.len());
        for launch in lowered.launches {
            let kernel = self.device().load(&launch.source)?;
            let mut args = launch.args;
            // How much scratch memory a vendor's operation takes is known now; it is the last argument.
            let len = if let KernelSource::Builtin(_) = launch.source { kernel.workspace_bytes() } else { 0 };
            if len > 0 {
                let offset = workspace_bytes.next_multiple_of(alignment);
                args.push(LaunchArg::Workspace { offset, len });
                workspace_bytes = offset + len;
            }
            kernels.push((kernel, launch.grid, args));
        }
        Ok(ChosenKernel {
            variant: variant.to_owned(),
            parameters: parameters.clone(),
            kernels,
            workspace_bytes,
        })
    }
}

/// Whether a compiler refused a kernel, so that another one may serve.
fn is_build_failure(error: &halite_hal::Error) -> bool {
    matches!(error.kind(), ErrorKind::Build { .. })
}

/// Checks what a variant answered: it may be another crate's.
fn check_arguments(variant: &str, request: &LowerRequest<'_>, lowered: &Lowered) -> Result<()> {
    let scalars = match request.op {
        KernelOp::Elementwise(program) => program.scalars.len(),
        KernelOp::Reduce(reduction) => reduction.program.scalars.len(),
        _ => 0,
    };
    let in_range = |arg: &LaunchArg| match *arg {
        LaunchArg::Input(n) => n < request.inputs.len(),
        LaunchArg::Output(n) => n < request.outputs.len(),
        LaunchArg::Scalar(n) => n < scalars,
        LaunchArg::Workspace { offset, len } => {
            offset.checked_add(len).is_some_and(|end| end <= lowered.workspace_bytes)
        }
        LaunchArg::Literal(_) => true,
    };
    let wrong = lowered.launches.iter().flat_map(|launch| &launch.args).find(|arg| !in_range(arg));
    match wrong {
        None => Ok(()),
        Some(arg) => Err(Error::Catalog(format!(
            "variant '{variant}' of {} launches with {arg:?}, but there are {} inputs, {} outputs, {scalars} scalars and \
             {} bytes of workspace",
            request.op.name(),
            request.inputs.len(),
            request.outputs.len(),
            lowered.workspace_bytes
        ))),
    }
}

/// The slices that a replay binds, by slot.
pub(crate) struct Bindings<'a> {
    pub(crate) leaves: &'a [Option<BufferSlice>],
    pub(crate) outputs: &'a [BufferSlice],
    pub(crate) arena: &'a BufferSlice,
    /// Runtime scalars by node.
    pub(crate) scalars: &'a [Option<Scalar>],
}

impl Bindings<'_> {
    pub(crate) fn slot(&self, slot: Slot) -> Result<BufferSlice> {
        match slot {
            Slot::Leaf(leaf) => self.leaf(leaf),
            Slot::Output(output) => Ok(self.outputs[output].clone()),
            Slot::Arena => Ok(self.arena.clone()),
        }
    }

    pub(crate) fn range(&self, place: Place, len: u64) -> Result<BufferSlice> {
        let (slice, offset) = match place {
            Place::Leaf(leaf) => (self.leaf(leaf)?, 0),
            Place::Output(output) => (self.outputs[output].clone(), 0),
            Place::Arena(offset) => (self.arena.clone(), offset),
        };
        Ok(slice.slice(offset, len)?)
    }

    pub(crate) fn numbers(&self, nodes: &[usize]) -> Vec<Scalar> {
        nodes.iter().filter_map(|&node| self.scalars[node]).collect()
    }

    fn leaf(&self, leaf: usize) -> Result<BufferSlice> {
        self.leaves[leaf].clone().ok_or_else(|| {
            let message = "an input's memory was taken over by an update that failed, or by another thread; make the input anew";
            halite_hal::Error::invalid(message).into()
        })
    }
}

/// A plan in the cache.
pub(crate) type SharedPlan = Arc<Plan>;
