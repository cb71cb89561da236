//! Matrix products by cuBLASLt.
//!
//! cuBLASLt's matrices are stored by columns. A row-major matrix is its transpose stored by columns, so the product
//! `out = lhs * rhs` is asked for as `out^T = rhs^T * lhs^T`: the operands change places, and an operand that lies
//! transposed in memory is the one that is marked as such. The bias, one number per column of `out`, is then one per row,
//! which is what cuBLASLt adds (cuBLAS, "cublasLtEpilogue_t").

use crate::api::Address;
use crate::buffer::Place;
use crate::builtin::{self, BuiltinKernel};
use crate::context::{Current, StreamHandle};
use crate::device::{DeviceShared, lock};
use crate::error::cublas_error;
use crate::library::{self, Libraries, Wanted, one_line};
use crate::op::Op;
use crate::probe::OFFSET_ALIGNMENT_BYTES;
use crate::sys::{
    CublasLtTable, HeuristicResult, cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t,
    cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t,
    cublasLtReductionScheme_t, cudaDataType_t,
};
use halite_hal::builtin::{Activation, BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{DType, Error, ErrorKind, Kernel, Result};
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, mem, ptr};

/// Most workspace that an algorithm may want. NVIDIA recommends 32 MiB for Hopper and 4 MiB for others (cuBLAS,
/// "cublasSetWorkspace"); algorithms that want less say so.
const MAX_WORKSPACE_BYTES: u64 = 32 << 20;
/// Algorithms that a device remembers.
const MAX_ALGORITHMS: usize = 1024;

/// cuBLASLt, loaded.
pub(crate) struct CublasLt {
    table: CublasLtTable,
    path: PathBuf,
    version: usize,
}

impl fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CublasLt({}, {})", self.path.display(), self.version)
    }
}

/// Libraries that were loaded, by the file that was asked for and the version that was preferred.
static LOADED: Mutex<Vec<(Option<PathBuf>, u32, &'static CublasLt)>> = Mutex::new(Vec::new());

impl CublasLt {
    /// Loads cuBLASLt, once; the one of `major` before others.
    ///
    /// # Errors
    /// `Unavailable` with what was looked for.
    pub(crate) fn load(libraries: &Libraries, major: u32) -> Result<&'static Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = loaded.iter().find(|(asked, of, _)| *asked == libraries.cublaslt && *of == major);
        if let Some((.., library)) = known {
            return Ok(library);
        }
        let (library, path) = library::open(&Wanted {
            what: "cuBLASLt, which multiplies matrices,",
            explicit: libraries.cublaslt.as_deref(),
            candidates: library::toolkit_candidates(major, library::cublaslt_name),
            remedy: "install it (a CUDA toolkit, or the Python wheel nvidia-cublas), or name it in HALITE_CUBLASLT_LIBRARY",
        })?;
        // SAFETY: the library is cuBLASLt by its name, or the file that the user named as such.
        let table = unsafe { CublasLtTable::resolve(library) }.map_err(|symbol| {
            Error::unavailable(format!(
                "{} has no function {symbol}; install another version",
                path.display()
            ))
        })?;
        // SAFETY: it takes nothing.
        let version = unsafe { (table.cublasLtGetVersion)() };
        let library: &'static Self = Box::leak(Box::new(Self { table, path, version }));
        loaded.push((libraries.cublaslt.clone(), major, library));
        Ok(library)
    }

    /// The version and the file, for people.
    pub(crate) fn describe(&self) -> (String, PathBuf) {
        // 10000 * major + 100 * minor + patch since cuBLAS 10; 12.9.1.4 is 120901.
        let (major, minor) = (self.version / 10_000, self.version / 100 % 100);
        (format!("{major}.{minor}"), self.path.clone())
    }

    fn check(&self, status: u32, call: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let name = self.table.cublasLtGetStatusName.and_then(|name| {
            // SAFETY: any number may be asked for.
            let text = unsafe { name(status) };
            // SAFETY: a string of the library, constant and with an end (cuBLAS, "cublasLtGetStatusName").
            (!text.is_null()).then(|| one_line(&unsafe { CStr::from_ptr(text) }.to_string_lossy()))
        });
        Err(cublas_error(status, call, name.as_deref()))
    }
}

/// Calls a function of the table, and turns its status into a result.
macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let library: &CublasLt = $library;
        // SAFETY: the function has the header's arguments (see `sys.rs`); pointers lead to locals of the caller that
        // outlive the call; descriptors are alive, since their owners call (`Descriptor`, `MatMul`), and a context is
        // current where one is needed.
        let status = unsafe { (library.table.$function)($($argument),*) };
        library.check(status, stringify!($function))
    }};
}

/// cuBLASLt on one device.
pub(crate) struct Blas {
    library: &'static CublasLt,
    /// Its calls are made one at a time; nobody promises that they may be made at once.
    handle: Mutex<LtHandle>,
    /// What the library advised for an operation.
    algorithms: Mutex<HashMap<BuiltinOp, (cublasLtMatmulAlgo_t, u64)>>,
}

#[derive(Clone, Copy)]
struct LtHandle(cublasLtHandle_t);
// SAFETY: it only names an object of the library, which any thread may use with the device's context current.
unsafe impl Send for LtHandle {}

impl Blas {
    /// Destroys the handle; the device's context is current.
    pub(crate) fn destroy(self) {
        if let Err(error) = call!(self.library, cublasLtDestroy(lock(&self.handle).0)) {
            log::debug!("{error}");
        }
    }
}

fn blas(device: &DeviceShared) -> Result<&Blas> {
    if let Some(blas) = device.blas.get() {
        return Ok(blas);
    }
    let library = device.cublaslt.clone().map_err(|error| Error::unsupported(error.message()))?;
    device.call(|_| {
        let mut handle = ptr::null_mut();
        call!(library, cublasLtCreate(&mut handle))?;
        let (handle, algorithms) = (Mutex::new(LtHandle(handle)), Mutex::default());
        if let Err(late) = device.blas.set(Blas { library, handle, algorithms }) {
            // Another thread was first.
            late.destroy();
        }
        Ok(())
    })?;
    Ok(device.blas.get().expect("it was set above, by this thread or another"))
}

/// An object of the library that describes something, destroyed when dropped.
struct Descriptor<T: Copy> {
    raw: T,
    library: &'static CublasLt,
    destroy: unsafe extern "C" fn(T) -> u32,
}
// SAFETY: it only names an object of the library, which one thread at a time uses: those of a product are used with the
// device's lock (`MatMulCall::run`).
unsafe impl<T: Copy> Send for Descriptor<T> {}
// SAFETY: as above.
unsafe impl<T: Copy> Sync for Descriptor<T> {}

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: the object is alive, and nobody else has it.
        let status = unsafe { (self.destroy)(self.raw) };
        if let Err(error) = self.library.check(status, "a descriptor's end") {
            log::debug!("{error}");
        }
    }
}

/// A product of matrices, for given operands.
pub(crate) struct MatMul {
    device: Arc<DeviceShared>,
    name: &'static str,
    /// Bytes that each argument must have at least.
    min_bytes: Vec<u64>,
    work: Work,
}

enum Work {
    /// No elements.
    Nothing,
    /// Sums of nothing.
    Zeros(BuiltinKernel),
    Product(Product),
}

struct Product {
    /// One and zero in the type of the sums.
    scales: Scales,
    desc: Descriptor<cublasLtMatmulDesc_t>,
    /// In the library's order: the right operand, the left one, the output.
    layouts: [Descriptor<cublasLtMatrixLayout_t>; 3],
    algorithm: cublasLtMatmulAlgo_t,
    has_bias: bool,
    workspace_bytes: u64,
}

#[derive(Clone, Copy)]
enum Scales {
    F32([f32; 2]),
    F64([f64; 2]),
}

impl Scales {
    /// Pointers to one and zero.
    fn pointers(&self) -> [*const c_void; 2] {
        match self {
            Self::F32([one, zero]) => [ptr::from_ref(one).cast(), ptr::from_ref(zero).cast()],
            Self::F64([one, zero]) => [ptr::from_ref(one).cast(), ptr::from_ref(zero).cast()],
        }
    }
}

/// A product on places of the device.
#[derive(Clone)]
pub(crate) struct MatMulCall {
    matmul: Arc<MatMul>,
    lhs: Address,
    rhs: Address,
    bias: Address,
    out: Address,
    workspace: Address,
}

/// Prepares a product.
///
/// # Errors
/// `Unsupported` where cuBLASLt is absent, for layouts that are not those of matrices, and for what it has no algorithm
/// for.
pub(crate) fn load(device: &Arc<DeviceShared>, op: &BuiltinOp) -> Result<Kernel> {
    let plan = Plan::of(op)?;
    let work = if plan.batch * plan.m * plan.n == 0 {
        Work::Nothing
    } else if plan.k == 0 {
        if plan.has_bias {
            return Err(Error::unsupported("a product without inner elements that has a bias"));
        }
        let out = op.operands[op.operands.len() - 1].clone();
        let zeros = BuiltinOp::new(BuiltinKind::Fill { value_bits: 0 }, vec![out])?;
        Work::Zeros(builtin::prepare(device, &zeros)?)
    } else {
        Work::Product(product(device, op, &plan)?)
    };
    let workspace_bytes = if let Work::Product(product) = &work { product.workspace_bytes } else { 0 };
    let mut signature = op.signature(workspace_bytes);
    signature.max_grid = Some([1, 1, 1]);
    let mut min_bytes = plan.min_bytes;
    if workspace_bytes > 0 {
        min_bytes.push(workspace_bytes);
    }
    let object = Arc::new(MatMul { device: device.clone(), name: op.name(), min_bytes, work });
    Ok(Kernel::new(device.info.id.clone(), op.name(), signature, workspace_bytes, Box::new(object)))
}

impl MatMul {
    /// The operation on these ranges: the operands, then the workspace where there is one.
    pub(crate) fn lower(self: &Arc<Self>, places: &[(Place, u64)]) -> Result<Op> {
        builtin::check_lengths(self.name, places, &self.min_bytes)?;
        let address = |index: usize| places.get(index).map_or(0, |(place, _)| place.address);
        match &self.work {
            Work::Nothing => Ok(Op::Nothing),
            Work::Zeros(fill) => fill.lower(&self.device, self.name, &places[2..3]),
            Work::Product(product) => {
                let out = 2 + usize::from(product.has_bias);
                Ok(Op::MatMul(MatMulCall {
                    matmul: self.clone(),
                    lhs: address(0),
                    rhs: address(1),
                    bias: if product.has_bias { address(2) } else { 0 },
                    out: address(out),
                    workspace: if product.workspace_bytes > 0 { address(out + 1) } else { 0 },
                }))
            }
        }
    }
}

impl MatMulCall {
    /// Enqueues the product.
    pub(crate) fn run(&self, gpu: &Current<'_>, stream: StreamHandle) -> Result<()> {
        let Work::Product(product) = &self.matmul.work else { return Ok(()) };
        let blas = blas(&self.matmul.device)?;
        let handle = lock(&blas.handle);
        let result = self.run_locked(product, blas.library, *handle, stream);
        drop(handle);
        // A fault of earlier work shows as a failure of the product; the driver says which it was.
        result.map_err(|error| match gpu.memory_info() {
            Err(lost) if matches!(lost.kind(), ErrorKind::DeviceLost) => lost,
            _ => error,
        })
    }

    fn run_locked(
        &self,
        product: &Product,
        library: &'static CublasLt,
        handle: LtHandle,
        stream: StreamHandle,
    ) -> Result<()> {
        let desc = &product.desc;
        if product.has_bias {
            desc.set(cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &self.bias)?;
        }
        let [one, zero] = product.scales.pointers();
        let [rhs, lhs, out] = &product.layouts;
        let at = |address: Address| ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        let workspace_bytes = product.workspace_bytes as usize;
        call!(
            library,
            cublasLtMatmul(
                handle.0,
                desc.raw,
                one,
                at(self.rhs),
                rhs.raw,
                at(self.lhs),
                lhs.raw,
                zero,
                at(self.out),
                out.raw,
                at(self.out),
                out.raw,
                &product.algorithm,
                at(self.workspace),
                workspace_bytes,
                stream.0.cast(),
            )
        )
    }
}

/// Makes the library's descriptions of a product, and asks it for an algorithm.
fn product(device: &Arc<DeviceShared>, op: &BuiltinOp, plan: &Plan) -> Result<Product> {
    let blas = blas(device)?;
    let library = blas.library;
    let has_tf32 = device.info.has_feature("tf32");
    let compute = match plan.sums {
        DType::F64 => cublasComputeType_t::CUBLAS_COMPUTE_64F,
        _ if plan.allow_tf32 && has_tf32 => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        _ => cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let scales = match plan.sums {
        DType::F64 => Scales::F64([1., 0.]),
        _ => Scales::F32([1., 0.]),
    };
    let mut raw = ptr::null_mut();
    call!(library, cublasLtMatmulDescCreate(&mut raw, compute, data_type(plan.sums)?))?;
    let desc = Descriptor { raw, library, destroy: library.table.cublasLtMatmulDescDestroy };
    use cublasLtMatmulDescAttributes_t::*;
    // `CUBLAS_OP_N` and `CUBLAS_OP_T`.
    desc.set(CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(plan.rhs.is_transposed))?;
    desc.set(CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(plan.lhs.is_transposed))?;
    desc.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &(plan.epilogue as u32))?;
    if plan.has_bias {
        // Only its alignment counts before the first call, which sets it.
        desc.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &OFFSET_ALIGNMENT_BYTES)?;
    }
    let layouts = [
        plan.layout(library, &plan.rhs, (plan.n, plan.k))?,
        plan.layout(library, &plan.lhs, (plan.k, plan.m))?,
        plan.layout(library, &plan.out, (plan.n, plan.m))?,
    ];
    let known = lock(&blas.algorithms).get(op).copied();
    let (algorithm, workspace_bytes) = match known {
        Some(known) => known,
        None => {
            let found =
                device.call(|_| advise(blas, op.name(), &desc, &layouts, plan.sums != plan.out.dtype))?;
            let mut algorithms = lock(&blas.algorithms);
            if algorithms.len() >= MAX_ALGORITHMS {
                algorithms.clear();
            }
            algorithms.insert(op.clone(), found);
            found
        }
    };
    Ok(Product { scales, desc, layouts, algorithm, has_bias: plan.has_bias, workspace_bytes })
}

/// The algorithm that the library thinks best, and its workspace.
fn advise(
    blas: &Blas,
    name: &str,
    desc: &Descriptor<cublasLtMatmulDesc_t>,
    layouts: &[Descriptor<cublasLtMatrixLayout_t>; 3],
    sums_are_wider: bool,
) -> Result<(cublasLtMatmulAlgo_t, u64)> {
    use cublasLtMatmulPreferenceAttributes_t::*;
    let library = blas.library;
    let mut raw = ptr::null_mut();
    call!(library, cublasLtMatmulPreferenceCreate(&mut raw))?;
    let preference = Descriptor { raw, library, destroy: library.table.cublasLtMatmulPreferenceDestroy };
    preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &MAX_WORKSPACE_BYTES)?;
    // Parts of a long sum are otherwise added up in the output's type.
    if sums_are_wider {
        let scheme = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme)?;
    }
    // It would take 256 bytes for granted, which holds for whole buffers only.
    for attribute in [
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        preference.set(attribute, &(OFFSET_ALIGNMENT_BYTES as u32))?;
    }
    // SAFETY: numbers and an array of numbers, for which zeros are valid.
    let mut result: HeuristicResult = unsafe { mem::zeroed() };
    let mut count = 0;
    let [rhs, lhs, out] = layouts.each_ref().map(|layout| layout.raw);
    let handle = lock(&blas.handle);
    let found = call!(
        library,
        cublasLtMatmulAlgoGetHeuristic(
            handle.0,
            desc.raw,
            rhs,
            lhs,
            out,
            out,
            preference.raw,
            1,
            &mut result,
            &mut count
        )
    );
    drop(handle);
    found?;
    if count < 1 || result.state != 0 {
        return Err(Error::unsupported(format!(
            "cuBLASLt has no algorithm for this built-in '{name}' ({count} found, status {})",
            result.state
        ))
        .in_call("cublasLtMatmulAlgoGetHeuristic"));
    }
    let workspace_bytes = result.workspace_bytes as u64;
    if workspace_bytes > MAX_WORKSPACE_BYTES {
        let message = format!(
            "cuBLASLt asks for {workspace_bytes} bytes of workspace, where {MAX_WORKSPACE_BYTES} are the most"
        );
        return Err(Error::unsupported(message).in_call("cublasLtMatmulAlgoGetHeuristic"));
    }
    Ok((result.algo, workspace_bytes))
}

impl Descriptor<cublasLtMatmulDesc_t> {
    fn set<V>(&self, attribute: cublasLtMatmulDescAttributes_t, value: &V) -> Result<()> {
        let value_at = ptr::from_ref(value).cast();
        call!(self.library, cublasLtMatmulDescSetAttribute(self.raw, attribute, value_at, size_of::<V>()))
    }
}

impl Descriptor<cublasLtMatrixLayout_t> {
    fn set<V>(&self, attribute: cublasLtMatrixLayoutAttribute_t, value: &V) -> Result<()> {
        let value_at = ptr::from_ref(value).cast();
        call!(self.library, cublasLtMatrixLayoutSetAttribute(self.raw, attribute, value_at, size_of::<V>()))
    }
}

impl Descriptor<cublasLtMatmulPreference_t> {
    fn set<V>(&self, attribute: cublasLtMatmulPreferenceAttributes_t, value: &V) -> Result<()> {
        let value_at = ptr::from_ref(value).cast();
        call!(
            self.library,
            cublasLtMatmulPreferenceSetAttribute(self.raw, attribute, value_at, size_of::<V>())
        )
    }
}

/// A product in terms of matrices.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    batch: u64,
    m: u64,
    n: u64,
    k: u64,
    lhs: Matrix,
    rhs: Matrix,
    out: Matrix,
    /// Type of the sums.
    sums: DType,
    epilogue: cublasLtEpilogue_t,
    has_bias: bool,
    allow_tf32: bool,
    /// Bytes that each operand must have at least.
    min_bytes: Vec<u64>,
}

/// A row-major matrix, or its transpose, and the others of its batch behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Matrix {
    dtype: DType,
    /// Whether columns, and not rows, lie without gaps.
    is_transposed: bool,
    /// Elements between the beginnings of neighbouring rows, or of columns if it is transposed.
    leading: u64,
    /// Elements between the beginnings of neighbours in the batch; 0 for the same matrix again and again.
    batch_stride: u64,
}

impl Plan {
    fn of(op: &BuiltinOp) -> Result<Self> {
        let name = op.name();
        let (has_bias, activation, allow_tf32) = match op.kind {
            BuiltinKind::FusedMatMul { bias, activation, allow_tf32 } => (bias, activation, allow_tf32),
            _ => (false, Activation::Identity, false),
        };
        let [lhs, rhs] = [&op.operands[0], &op.operands[1]];
        let out = &op.operands[op.operands.len() - 1];
        let extents = |operand: &OperandDesc| {
            operand.shape.split_last_chunk().map(|(axes, last)| (axes.to_vec(), *last))
        };
        let (Some((batch, [m, k])), Some((rhs_batch, [rhs_k, n])), Some((out_batch, [out_m, out_n]))) =
            (extents(lhs), extents(rhs), extents(out))
        else {
            return Err(Error::invalid(format!("built-in '{name}' takes operands of at least two axes")));
        };
        if (rhs_k, out_m, out_n) != (k, m, n) || batch != rhs_batch || batch != out_batch {
            return Err(Error::invalid(format!(
                "shapes of built-in '{name}' do not fit: {:?} times {:?} to {:?}",
                lhs.shape, rhs.shape, out.shape
            )));
        }
        let sums = match (lhs.dtype, rhs.dtype, out.dtype) {
            (a, b, _) if a != b => None,
            (DType::F32, _, DType::F32) => Some(DType::F32),
            (DType::F64, _, DType::F64) => Some(DType::F64),
            (half @ (DType::F16 | DType::BF16), _, out) if out == half || out == DType::F32 => {
                Some(DType::F32)
            }
            _ => None,
        };
        let sums = sums.ok_or_else(|| {
            Error::unsupported(format!(
                "built-in '{name}' of {} and {} to {}; this device has f64, f32, and f16 or bf16 to itself or f32",
                lhs.dtype, rhs.dtype, out.dtype
            ))
        })?;
        if has_bias && op.operands[2].dtype != out.dtype {
            return Err(Error::unsupported(format!("built-in '{name}' wants its bias in the output's type")));
        }
        if has_bias && n > 1 && op.operands[2].strides != [1] {
            return Err(Error::unsupported(format!("built-in '{name}' wants a bias without gaps")));
        }
        use cublasLtEpilogue_t::*;
        let epilogue = match (activation, has_bias) {
            (Activation::Identity, false) => CUBLASLT_EPILOGUE_DEFAULT,
            (Activation::Identity, true) => CUBLASLT_EPILOGUE_BIAS,
            (Activation::Relu, false) => CUBLASLT_EPILOGUE_RELU,
            (Activation::Relu, true) => CUBLASLT_EPILOGUE_RELU_BIAS,
            (Activation::GeluTanh, false) => CUBLASLT_EPILOGUE_GELU,
            (Activation::GeluTanh, true) => CUBLASLT_EPILOGUE_GELU_BIAS,
            _ => return Err(Error::unsupported(format!("built-in '{name}' with activation {activation:?}"))),
        };
        let (count, strides) = collapse(name, &batch, &[lhs, rhs, out])?;
        let matrices = [lhs, rhs, out].into_iter().zip(strides).enumerate();
        let mut matrices =
            matrices.map(|(index, (operand, stride))| Matrix::of(name, index, operand, stride));
        let mut next = || matrices.next().expect("there are three operands");
        let (lhs_matrix, rhs_matrix, out_matrix) = (next()?, next()?, next()?);
        let span = (m.max(1) - 1).saturating_mul(out_matrix.leading).saturating_add(n);
        if out_matrix.is_transposed || (count > 1 && out_matrix.batch_stride < span) {
            return Err(Error::unsupported(format!(
                "built-in '{name}' wants an output of rows without gaps"
            )));
        }
        let min_bytes = op.operands.iter().map(|operand| min_bytes(name, operand)).collect::<Result<_>>()?;
        Ok(Self {
            batch: count,
            m,
            n,
            k,
            lhs: lhs_matrix,
            rhs: rhs_matrix,
            out: out_matrix,
            sums,
            epilogue,
            has_bias,
            allow_tf32,
            min_bytes,
        })
    }

    /// The library's description of a matrix that has these rows and columns when it is read by columns.
    fn layout(
        &self,
        library: &'static CublasLt,
        matrix: &Matrix,
        (rows, columns): (u64, u64),
    ) -> Result<Descriptor<cublasLtMatrixLayout_t>> {
        use cublasLtMatrixLayoutAttribute_t::*;
        // Its memory is that of the transpose where it is transposed.
        let (rows, columns) = if matrix.is_transposed { (columns, rows) } else { (rows, columns) };
        let leading = i64::try_from(matrix.leading).unwrap_or(i64::MAX);
        let mut raw = ptr::null_mut();
        let dtype = data_type(matrix.dtype)?;
        call!(library, cublasLtMatrixLayoutCreate(&mut raw, dtype, rows, columns, leading))?;
        let layout = Descriptor { raw, library, destroy: library.table.cublasLtMatrixLayoutDestroy };
        if self.batch > 1 {
            let count = i32::try_from(self.batch)
                .map_err(|_| Error::unsupported(format!("{} products in one batch", self.batch)))?;
            let stride = i64::try_from(matrix.batch_stride).unwrap_or(i64::MAX);
            layout.set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count)?;
            layout.set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride)?;
        }
        Ok(layout)
    }
}

impl Matrix {
    /// The last two axes of an operand.
    fn of(name: &str, index: usize, operand: &OperandDesc, batch_stride: u64) -> Result<Self> {
        let axes = operand.shape.len() - 2;
        let (rows, columns) = (operand.shape[axes], operand.shape[axes + 1]);
        let [down, right] = [operand.strides[axes], operand.strides[axes + 1]];
        // Strides of axes with one element lead nowhere.
        let fits = |gap: i64, len: u64| u64::try_from(gap).ok().filter(|gap| *gap >= len.max(1));
        let matrix =
            |is_transposed, leading| Self { dtype: operand.dtype, is_transposed, leading, batch_stride };
        if rows == 0 || columns == 0 || (rows == 1 && (columns == 1 || right == 1)) {
            return Ok(matrix(false, columns.max(1)));
        }
        if (columns <= 1 || right == 1)
            && let Some(leading) = fits(down, columns)
        {
            return Ok(matrix(false, leading));
        }
        if columns <= 1 && down == 1 {
            return Ok(matrix(true, rows.max(1)));
        }
        if (rows <= 1 || down == 1)
            && let Some(leading) = fits(right, rows)
        {
            return Ok(matrix(true, leading));
        }
        Err(Error::unsupported(format!(
            "operand {index} of built-in '{name}' has strides {:?}; its rows or its columns must lie without gaps",
            operand.strides
        )))
    }
}

/// The leading axes of all operands as one: its length, and each operand's stride.
fn collapse(name: &str, axes: &[u64], operands: &[&OperandDesc; 3]) -> Result<(u64, [u64; 3])> {
    let too_large = || Error::unsupported(format!("built-in '{name}' beyond the address range"));
    let mut count = 1u64;
    let mut strides = [0i64; 3];
    for (axis, extent) in axes.iter().enumerate().rev() {
        if *extent == 1 {
            continue;
        }
        for (stride, operand) in strides.iter_mut().zip(operands) {
            let own = operand.strides[axis];
            if count == 1 {
                *stride = own;
            } else if i64::try_from(count).ok().and_then(|count| stride.checked_mul(count)) != Some(own) {
                return Err(Error::unsupported(format!(
                    "the leading axes of built-in '{name}' have strides that are not those of one axis"
                )));
            }
        }
        count = count.checked_mul(*extent).ok_or_else(too_large)?;
    }
    let mut own = [0; 3];
    for (own, stride) in own.iter_mut().zip(strides) {
        *own = u64::try_from(stride)
            .map_err(|_| Error::unsupported(format!("built-in '{name}' with a negative stride")))?;
    }
    Ok((count, own))
}

/// Bytes from the first element of an operand to the end of its last one.
fn min_bytes(name: &str, operand: &OperandDesc) -> Result<u64> {
    if operand.elements() == Some(0) {
        return Ok(0);
    }
    let last = operand.shape.iter().zip(&operand.strides).try_fold(0u64, |sum, (extent, stride)| {
        if *extent == 1 {
            return Some(sum);
        }
        sum.checked_add(u64::try_from(*stride).ok()?.checked_mul(extent - 1)?)
    });
    let bytes = last.and_then(|last| last.checked_add(1)?.checked_mul(operand.dtype.size() as u64));
    bytes.ok_or_else(|| Error::unsupported(format!("built-in '{name}' beyond the address range")))
}

fn data_type(dtype: DType) -> Result<cudaDataType_t> {
    match dtype {
        DType::F16 => Ok(cudaDataType_t::CUDA_R_16F),
        DType::BF16 => Ok(cudaDataType_t::CUDA_R_16BF),
        DType::F32 => Ok(cudaDataType_t::CUDA_R_32F),
        DType::F64 => Ok(cudaDataType_t::CUDA_R_64F),
        other => Err(Error::unsupported(format!("products of {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(shape: &[u64], strides: &[i64]) -> OperandDesc {
        OperandDesc { dtype: DType::F32, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    fn plan(lhs: OperandDesc, rhs: OperandDesc, out: OperandDesc) -> Result<Plan> {
        Plan::of(&BuiltinOp::new(BuiltinKind::MatMul, vec![lhs, rhs, out]).unwrap())
    }

    fn matrix(is_transposed: bool, leading: u64, batch_stride: u64) -> Matrix {
        Matrix { dtype: DType::F32, is_transposed, leading, batch_stride }
    }

    #[test]
    fn rows_and_columns_without_gaps_are_recognised() {
        let plan = plan(desc(&[2, 3], &[1, 2]), desc(&[3, 5], &[8, 1]), desc(&[2, 5], &[5, 1])).unwrap();
        assert_eq!((plan.batch, plan.m, plan.n, plan.k), (1, 2, 5, 3));
        assert_eq!(
            (plan.lhs, plan.rhs, plan.out),
            (matrix(true, 2, 0), matrix(false, 8, 0), matrix(false, 5, 0))
        );
        assert_eq!(plan.min_bytes, [24, 84, 40]);
    }

    #[test]
    fn axes_of_one_element_have_any_stride() {
        for (shape, strides, expected) in [
            (&[1u64, 7][..], &[0i64, 1][..], matrix(false, 7, 0)),
            (&[7, 1], &[1, 0], matrix(false, 1, 0)),
            (&[7, 1], &[4, 99], matrix(false, 4, 0)),
            (&[1, 7], &[99, 4], matrix(true, 4, 0)),
            (&[1, 1], &[0, 0], matrix(false, 1, 0)),
        ] {
            assert_eq!(
                Matrix::of("matmul", 0, &desc(shape, strides), 0).unwrap(),
                expected,
                "{shape:?} {strides:?}"
            );
        }
    }

    #[test]
    fn leading_axes_become_one() {
        let dense = |shape: &[u64]| OperandDesc::contiguous(DType::F32, shape);
        let both = plan(dense(&[2, 3, 4, 5]), dense(&[2, 3, 5, 6]), dense(&[2, 3, 4, 6])).unwrap();
        assert_eq!((both.batch, both.lhs.batch_stride, both.out.batch_stride), (6, 20, 24));
        // The same right operand for all.
        let shared = desc(&[2, 3, 5, 6], &[0, 0, 6, 1]);
        let shared = plan(dense(&[2, 3, 4, 5]), shared, dense(&[2, 3, 4, 6])).unwrap();
        assert_eq!((shared.batch, shared.rhs.batch_stride), (6, 0));
        // One per outer index: no single stride.
        let outer = desc(&[2, 3, 5, 6], &[30, 0, 6, 1]);
        let error = plan(dense(&[2, 3, 4, 5]), outer, dense(&[2, 3, 4, 6])).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unsupported);
    }

    #[test]
    fn what_is_no_product_is_refused() {
        let dense = |shape: &[u64]| OperandDesc::contiguous(DType::F32, shape);
        for (lhs, rhs, out) in [
            (dense(&[2, 3]), dense(&[4, 5]), dense(&[2, 5])),
            (dense(&[2, 3]), dense(&[3, 5]), dense(&[5, 2])),
            (dense(&[3]), dense(&[3, 5]), dense(&[1, 5])),
            (dense(&[1, 2, 3]), dense(&[3, 5]), dense(&[2, 5])),
        ] {
            assert_eq!(plan(lhs, rhs, out).unwrap_err().kind(), &ErrorKind::InvalidArgument);
        }
        for (lhs, rhs, out) in [
            (desc(&[2, 3], &[6, 2]), dense(&[3, 5]), dense(&[2, 5])),
            (desc(&[2, 3], &[-3, 1]), dense(&[3, 5]), dense(&[2, 5])),
            (desc(&[2, 3], &[0, 1]), dense(&[3, 5]), dense(&[2, 5])),
            (dense(&[2, 3]), dense(&[3, 5]), desc(&[2, 5], &[1, 2])),
            (dense(&[2, 2, 3]), dense(&[2, 3, 5]), desc(&[2, 2, 5], &[0, 5, 1])),
            (OperandDesc::contiguous(DType::I32, &[2, 3]), dense(&[3, 5]), dense(&[2, 5])),
        ] {
            assert_eq!(plan(lhs, rhs, out).unwrap_err().kind(), &ErrorKind::Unsupported);
        }
    }

    #[test]
    fn sums_are_as_wide_as_the_types_ask() {
        for (dtype, out, sums) in [
            (DType::F16, DType::F16, Some(DType::F32)),
            (DType::BF16, DType::F32, Some(DType::F32)),
            (DType::F64, DType::F64, Some(DType::F64)),
            (DType::F32, DType::F16, None),
            (DType::F16, DType::BF16, None),
            (DType::I8, DType::I8, None),
        ] {
            let operand = |dtype, shape: &[u64]| OperandDesc::contiguous(dtype, shape);
            let plan = plan(operand(dtype, &[2, 3]), operand(dtype, &[3, 2]), operand(out, &[2, 2]));
            assert_eq!(plan.ok().map(|plan| plan.sums), sums, "{dtype} to {out}");
        }
    }
}
