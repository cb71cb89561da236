//! Fused elementwise programs as statements of the common dialect.
//!
//! Each step becomes one constant, `v{step}`; a step of half precision is computed in f32 and rounded. A loaded element
//! of half precision keeps its bits beside its value, `b{step}`, so that moving it changes nothing.

use super::source::{bits_dtype, from_storage, literal, register, storage, to_storage};
use crate::cluster::{BinaryOp, Cluster, CompareOp, StepOp, UnaryOp, ValueId, View};
use crate::lower::{LowerRequest, Unservable};
use halite_hal::DType;
use std::fmt::Write;

/// Checks what code is generated from: ranks, operands, and that every view stays inside its buffer.
///
/// Gives the largest number of elements that an index may have to count.
pub(super) fn check(program: &Cluster, request: &LowerRequest<'_>) -> Result<i64, Unservable> {
    for (id, step) in program.steps.iter().enumerate() {
        let is_known = match step.op {
            StepOp::Load(input) => (input as usize) < program.inputs.len(),
            StepOp::Scalar(scalar) => (scalar as usize) < program.scalars.len(),
            StepOp::Index(axis) => (axis as usize) < program.shape.len(),
            _ => step.op.operands().all(|operand| (operand as usize) < id),
        };
        if !is_known {
            return Err(Unservable::new(format!(
                "step {id} uses what is not there before it: {:?}",
                step.op
            )));
        }
    }
    if let Some(output) = program.outputs.iter().find(|&&output| output as usize >= program.steps.len()) {
        return Err(Unservable::new(format!("the program stores step {output}, which it does not have")));
    }
    let points = program
        .shape
        .iter()
        .try_fold(1i64, |points, &extent| points.checked_mul(i64::try_from(extent).ok()?));
    let points = points.ok_or_else(|| Unservable::new("the program has too many points"))?;
    let mut reach = points;
    for (input, view) in program.inputs.iter().enumerate() {
        if view.strides.len() != program.shape.len() {
            let (strides, axes) = (view.strides.len(), program.shape.len());
            return Err(Unservable::new(format!(
                "the view of input {input} has {strides} strides over {axes} axes"
            )));
        }
        let (first, last) = bounds(view, &program.shape);
        let elements = request.inputs.get(input).map_or(0, |tensor| tensor.elements());
        if points > 0 && (first < 0 || last >= elements as i128) {
            return Err(Unservable::new(format!(
                "input {input} reads elements {first} to {last} of a buffer of {elements}"
            )));
        }
        reach = reach.max(elements as i64);
        // Products of an index and a stride are within the distance of the ends, whatever their sign.
        reach = reach.max(i64::try_from(last - first).unwrap_or(i64::MAX));
    }
    Ok(reach)
}

/// The first and the last element that a view of at least one point reads.
fn bounds(view: &View, shape: &[usize]) -> (i128, i128) {
    let (mut first, mut last) = (i128::from(view.offset), i128::from(view.offset));
    for (&stride, &extent) in view.strides.iter().zip(shape) {
        let reach = i128::from(stride) * (extent as i128 - 1).max(0);
        first += reach.min(0);
        last += reach.max(0);
    }
    (first, last)
}

/// The same movement of elements as bits, if the program computes nothing: then any dtype is served, and one kernel
/// serves all of a size.
pub(super) fn as_bits(program: &Cluster) -> Option<Cluster> {
    let moves = |op: &StepOp| matches!(op, StepOp::Load(_) | StepOp::Constant(_));
    if !program.steps.iter().all(|step| moves(&step.op)) {
        return None;
    }
    let mut bits = program.clone();
    bits.inputs.iter_mut().for_each(|view| view.dtype = bits_dtype(view.dtype));
    for step in &mut bits.steps {
        step.dtype = bits_dtype(step.dtype);
        if let StepOp::Constant(literal) = &mut step.op {
            literal.dtype = step.dtype;
        }
    }
    Some(bits)
}

/// The steps that outputs depend on.
pub(super) fn live_steps(program: &Cluster) -> Vec<bool> {
    let mut live = vec![false; program.steps.len()];
    program.outputs.iter().for_each(|&output| live[output as usize] = true);
    for (id, step) in program.steps.iter().enumerate().rev() {
        if live[id] {
            step.op.operands().for_each(|operand| live[operand as usize] = true);
        }
    }
    live
}

/// Statements that compute every live step at one point. `load` gives the element of an input in memory, `index` the
/// index along an axis.
pub(super) fn statements(
    program: &Cluster,
    indent: &str,
    load: impl Fn(usize) -> String,
    index: impl Fn(usize) -> String,
) -> String {
    let mut text = String::new();
    let dtype_of = |id: ValueId| program.steps[id as usize].dtype;
    let live = live_steps(program);
    for (id, step) in program.steps.iter().enumerate().filter(|&(id, _)| live[id]) {
        let dtype = step.dtype;
        let value = match step.op {
            StepOp::Load(input) => {
                let element = load(input as usize);
                if storage(dtype) == register(dtype) {
                    element
                } else {
                    let _ = writeln!(text, "{indent}const {} b{id} = {element};", storage(dtype));
                    from_storage(dtype, &format!("b{id}"))
                }
            }
            StepOp::Scalar(scalar) => format!("s{scalar}"),
            StepOp::Constant(constant) => literal(constant.dtype, constant.bits),
            StepOp::Index(axis) => cast(DType::I64, dtype, &format!("(i64)({})", index(axis as usize))),
            StepOp::Unary(op, a) => unary(op, dtype, &v(a)),
            StepOp::Binary(op, a, b) => binary(op, dtype, &v(a), &v(b)),
            StepOp::Compare(op, a, b) => {
                format!("(u8)({} {} {})", v(a), comparison(op), v(b))
            }
            StepOp::Select(condition, a, b) => format!("{} ? {} : {}", v(condition), v(a), v(b)),
            StepOp::Cast(a) => cast(dtype_of(a), dtype, &v(a)),
            StepOp::Bitcast(a) => bitcast(program, a, dtype),
        };
        let _ = writeln!(text, "{indent}const {} v{id} = {value};", register(dtype));
    }
    text
}

/// The value of a step as memory holds it.
pub(super) fn stored(program: &Cluster, id: ValueId) -> String {
    let step = program.steps[id as usize];
    match step.op {
        StepOp::Load(_) if storage(step.dtype) != register(step.dtype) => format!("b{id}"),
        _ => to_storage(step.dtype, &v(id)),
    }
}

fn v(id: ValueId) -> String {
    format!("v{id}")
}

/// The unsigned type of the same width.
fn unsigned(dtype: DType) -> &'static str {
    bits_dtype(dtype).name()
}

/// The unsigned type in which integers of `dtype` wrap without surprises: C computes narrow ones in 32 bits.
fn wide(dtype: DType) -> &'static str {
    if dtype.size() == 8 { "u64" } else { "u32" }
}

fn rounded(dtype: DType, value: String) -> String {
    match dtype {
        DType::F16 | DType::BF16 => format!("{dtype}_round({value})"),
        _ => value,
    }
}

/// The operator of a comparison.
pub(super) fn comparison(op: CompareOp) -> &'static str {
    match op {
        CompareOp::Eq => "==",
        CompareOp::Lt => "<",
        CompareOp::Le => "<=",
    }
}

/// The value of a function of a register of `dtype`.
pub(super) fn unary(op: UnaryOp, dtype: DType, a: &str) -> String {
    let t = register(dtype);
    if !dtype.is_float() {
        let negative = format!("({t})(0 - ({}){a})", wide(dtype));
        return match op {
            UnaryOp::Neg => negative,
            UnaryOp::Abs if dtype.is_signed() => format!("{a} < 0 ? {negative} : {a}"),
            UnaryOp::Sign if dtype.is_signed() => format!("SIGN({t}, {a})"),
            UnaryOp::Sign => format!("({t})({a} != 0)"),
            UnaryOp::Not if dtype == DType::Bool => format!("(u8)({a} == 0)"),
            UnaryOp::Not => format!("({t})~{a}"),
            // The others are the identity on integers, which the graph does not ask for.
            _ => a.to_owned(),
        };
    }
    match op {
        UnaryOp::Neg => format!("-{a}"),
        UnaryOp::Abs => format!("fabs({a})"),
        UnaryOp::Sign => format!("SIGN({t}, {a})"),
        UnaryOp::Floor => format!("floor({a})"),
        UnaryOp::Ceil => format!("ceil({a})"),
        UnaryOp::Round => format!("rint({a})"),
        UnaryOp::Exp => rounded(dtype, format!("exp({a})")),
        UnaryOp::Log => rounded(dtype, format!("log({a})")),
        UnaryOp::Sqrt if dtype == DType::F64 => format!("sqrt({a})"),
        UnaryOp::Rsqrt if dtype == DType::F64 => format!("1.0 / sqrt({a})"),
        UnaryOp::Sqrt => rounded(dtype, format!("f32_root({a})")),
        UnaryOp::Rsqrt => rounded(dtype, format!("f32_quotient(1.0f, f32_root({a}))")),
        UnaryOp::Sin => rounded(dtype, format!("sin({a})")),
        UnaryOp::Cos => rounded(dtype, format!("cos({a})")),
        UnaryOp::Tanh => rounded(dtype, format!("tanh({a})")),
        UnaryOp::Not => a.to_owned(),
    }
}

/// The value of a function of two registers of `dtype`.
pub(super) fn binary(op: BinaryOp, dtype: DType, a: &str, b: &str) -> String {
    let (t, u, wide) = (register(dtype), unsigned(dtype), wide(dtype));
    let bits = 8 * dtype.size();
    let float = dtype.is_float();
    let plain = |sign: &str| {
        if float {
            rounded(dtype, format!("{a} {sign} {b}"))
        } else {
            format!("({t})(({wide}){a} {sign} ({wide}){b})")
        }
    };
    match op {
        BinaryOp::Add => plain("+"),
        BinaryOp::Sub => plain("-"),
        BinaryOp::Mul => plain("*"),
        BinaryOp::Div if dtype == DType::F64 => plain("/"),
        BinaryOp::Div if float => rounded(dtype, format!("f32_quotient({a}, {b})")),
        BinaryOp::Div => format!("{t}_div({a}, {b})"),
        BinaryOp::Rem if float => rounded(dtype, format!("{t}_fmod({a}, {b})")),
        BinaryOp::Rem => format!("{t}_rem({a}, {b})"),
        BinaryOp::Pow => rounded(dtype, format!("pow({a}, {b})")),
        BinaryOp::Max if float => format!("LARGER({a}, {b})"),
        BinaryOp::Min if float => format!("SMALLER({a}, {b})"),
        BinaryOp::Max => format!("{a} > {b} ? {a} : {b}"),
        BinaryOp::Min => format!("{a} < {b} ? {a} : {b}"),
        BinaryOp::And => format!("({t})({a} & {b})"),
        BinaryOp::Or => format!("({t})({a} | {b})"),
        BinaryOp::Xor => format!("({t})({a} ^ {b})"),
        BinaryOp::Shl => format!("SHIFT_LEFT({t}, {u}, {wide}, {bits}, {a}, {b})"),
        BinaryOp::Shr => format!("SHIFT_RIGHT({t}, {u}, {bits}, {a}, {b})"),
    }
}

/// The conversion of a value in a register.
pub(super) fn cast(from: DType, to: DType, a: &str) -> String {
    let is_half = |dtype| matches!(dtype, DType::F16 | DType::BF16);
    let t = register(to);
    if from == to {
        return a.to_owned();
    }
    match to {
        DType::Bool => format!("(u8)({a} != 0)"),
        DType::F16 | DType::BF16 => match from {
            DType::F64 => format!("{to}_round(f64_to_odd({a}))"),
            DType::I32 | DType::I64 => format!("{to}_round(i64_to_odd((i64)({a})))"),
            DType::U32 | DType::U64 => format!("{to}_round(u64_to_odd((u64)({a})))"),
            _ => format!("{to}_round((f32)({a}))"),
        },
        _ if is_half(from) && to == DType::F32 => a.to_owned(),
        _ if to.is_integer() && from.is_float() => format!("{}_to_{t}({a})", register(from)),
        _ => format!("({t})({a})"),
    }
}

/// The bits of step `a` as `to`, which has the same size.
fn bitcast(program: &Cluster, a: ValueId, to: DType) -> String {
    let from = program.steps[a as usize].dtype;
    let value = v(a);
    let bits = match from {
        DType::F16 | DType::BF16 => stored(program, a),
        DType::F32 | DType::F64 => format!("{from}_to_bits({value})"),
        _ => value,
    };
    match to {
        DType::Bool => format!("(u8)({bits} != 0)"),
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => {
            format!("{to}_from_bits(({}){bits})", unsigned(from))
        }
        _ => format!("({})({bits})", register(to)),
    }
}
