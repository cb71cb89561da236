//! Operations of other crates, and the catalog of kernel variants.

use crate::lower::{KernelOp, KernelVariant, TensorType};
use crate::reference::HostTensor;
use crate::{Error, Result, Tensor, kernels, lower};
use halite_hal::DeviceInfo;
use halite_profiles::{Candidate, Profile, Size};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// An operation that another crate adds: a shape rule, a derivative, a plain reference and, in a [`Catalog`],
/// kernel variants under its name.
///
/// An implementor holds its attributes; two calls with different attributes are two values. Its kernel variants read
/// them through [`CustomCall::op_as`](crate::lower::CustomCall::op_as).
pub trait CustomOp: Any + Send + Sync {
    /// The name under which kernel variants are registered and profiles choose. Lower case with underscores.
    fn name(&self) -> &str;

    /// Type of the result.
    ///
    /// # Errors
    /// One line that says what was expected and what came.
    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType, String>;

    /// Gradients with respect to each input, built from ordinary tensor operations; `None` where there is none.
    ///
    /// # Errors
    /// Whatever building them reports.
    fn derivative(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;

    /// The plain definition in f64, which every device is tested against.
    ///
    /// # Errors
    /// One line, when the inputs do not fit.
    fn reference(&self, inputs: &[HostTensor]) -> Result<HostTensor, String>;
}

impl fmt::Debug for dyn CustomOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CustomOp({})", self.name())
    }
}

/// Every kernel variant that engines may choose from: those of this crate, and those that others add.
#[derive(Debug, Clone)]
pub struct Catalog {
    variants: Vec<Arc<KernelVariant>>,
}

impl Catalog {
    /// The variants of this crate.
    pub fn builtin() -> Self {
        Self { variants: kernels::builtin_variants().into_iter().map(Arc::new).collect() }
    }

    /// Adds a variant behind the others of its operation; a profile may prefer it by name.
    ///
    /// # Errors
    /// When the operation has a variant of that name and format already.
    pub fn register(&mut self, variant: KernelVariant) -> Result<()> {
        let taken = |own: &Arc<KernelVariant>| {
            own.op == variant.op && own.name == variant.name && own.format == variant.format
        };
        if self.variants.iter().any(taken) {
            let KernelVariant { op, name, format, .. } = &variant;
            return Err(Error::Catalog(format!(
                "{op} has a variant '{name}' for {format} already; choose another name"
            )));
        }
        self.variants.push(Arc::new(variant));
        Ok(())
    }

    /// Checks what a user wrote into a profile, before anything runs: it may name only operations, and variants of
    /// formats that the device takes, or would take with its compiler, that are here; a `when` only sizes that its operation
    /// [has](KernelOp::variable_names); an entry only sizes that its variant [reads](KernelVariant::with_sizes); and
    /// sums are kept as kernels keep them.
    /// Entries of built-in profiles may name what a program has left out.
    ///
    /// # Errors
    /// `Profile` with file, line and the names that would work.
    pub fn check(&self, profile: &Profile, device: &DeviceInfo) -> Result<()> {
        let profile_error = |error: halite_profiles::Error| Error::Profile(error.to_string());
        profile.check_accumulate(|dtype| vec![lower::accumulation(dtype)]).map_err(profile_error)?;
        let mut ops: Vec<&str> = self.variants.iter().map(|variant| variant.op.as_str()).collect();
        ops.sort_unstable();
        ops.dedup();
        profile.check_ops(&ops).map_err(profile_error)?;
        for op in ops {
            let names = self.variants_of(op).filter(|variant| speaks(device, &variant.format));
            let candidates: Vec<Candidate<'_>> =
                names.map(|variant| Candidate { variant: &variant.name, requires: &[] }).collect();
            profile.check_variants(op, &candidates).map_err(profile_error)?;
            profile.check_conditions(op, KernelOp::variable_names(op)).map_err(profile_error)?;
            profile.check_sizes(op, |name| self.sizes_of(op, name, device)).map_err(profile_error)?;
        }
        Ok(())
    }

    /// The sizes that the variants of this name read, in any format that the device takes; `None` if one takes all.
    fn sizes_of(&self, op: &str, name: &str, device: &DeviceInfo) -> Option<Vec<Size>> {
        let named = self.variants_of(op).filter(|own| own.name == name && speaks(device, &own.format));
        let sizes = named.map(|variant| variant.sizes.clone()).collect::<Option<Vec<_>>>()?;
        Some(sizes.concat())
    }

    /// The variants of `op`, in order of registration.
    pub fn variants_of<'a>(&'a self, op: &'a str) -> impl Iterator<Item = &'a Arc<KernelVariant>> {
        self.variants.iter().filter(move |variant| variant.op == op)
    }
}
/// Whether the device takes kernels of `format`, or would if the compiler of its backend's language were there: what a
/// profile may name on every machine.
pub(crate) fn speaks(device: &DeviceInfo, format: &str) -> bool {
    device.accepts(format) || format.strip_suffix("-c") == Some(device.id.backend.as_str())
}
