//! Products against a reference in f64, on every instruction set that the machine has.

use super::*;

/// Unit roundoff of f32: a sum of k products is off by at most about k of them, relative to the sum of
/// magnitudes (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1).
const ROUNDOFF_F32: f64 = 5.97e-8;
/// Unit roundoff of f16, for the one rounding of a finished element.
const ROUNDOFF_F16: f64 = 4.89e-4;

trait Number: GemmElement + Default {
    const ROUNDOFF: f64;
    const OUT_ROUNDOFF: f64;
    const NAN: Self;
    fn new(x: f64) -> Self;
    fn value(self) -> f64;
}

impl Number for f32 {
    const ROUNDOFF: f64 = ROUNDOFF_F32;
    const OUT_ROUNDOFF: f64 = ROUNDOFF_F32;
    const NAN: Self = f32::NAN;
    fn new(x: f64) -> Self {
        x as f32
    }
    fn value(self) -> f64 {
        self.into()
    }
}

impl Number for f64 {
    const ROUNDOFF: f64 = 1.2e-16;
    const OUT_ROUNDOFF: f64 = 1.2e-16;
    const NAN: Self = f64::NAN;
    fn new(x: f64) -> Self {
        x
    }
    fn value(self) -> f64 {
        self
    }
}

impl Number for f16 {
    const ROUNDOFF: f64 = ROUNDOFF_F32;
    const OUT_ROUNDOFF: f64 = ROUNDOFF_F16;
    const NAN: Self = f16::NAN;
    fn new(x: f64) -> Self {
        f16::from_f64(x)
    }
    fn value(self) -> f64 {
        self.into()
    }
}

/// A linear congruential generator (Knuth's MMIX constants), in [-1, 1).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn fill<T: Number>(&mut self, len: usize) -> Vec<T> {
        (0..len).map(|_| T::new(self.next())).collect()
    }
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| {
        let here = isa.is_available();
        if !here {
            println!("skipped {}: this processor lacks it", isa.name());
        }
        here
    })
}

/// Elements before and after C that nothing may touch.
const MARGIN: usize = 64;

/// Runs every group in a scrambled order with poisoned scratch memory.
fn run<T: Number>(plan: &GemmPlan<T>, a: &[T], b: &[T], c: &mut [T], bias: &[T]) {
    let mut scratch = vec![0xFF; plan.scratch_bytes() + 1];
    let groups = plan.groups();
    let stride = (1..).find(|s| s % 7 == 3 && !groups.is_multiple_of(*s) || *s > groups).unwrap_or(1);
    let mut order: Vec<u32> = (0..groups).collect();
    order.sort_by_key(|g| (g * stride) % groups.max(1));
    for group in order {
        scratch.fill(0xFF);
        // SAFETY: the slices are as long as the spec reaches.
        unsafe {
            plan.run_group(
                group,
                a.as_ptr(),
                b.as_ptr(),
                c[MARGIN..].as_mut_ptr(),
                bias.as_ptr(),
                &mut scratch[1..],
            );
        }
    }
}

/// Last element that strides reach from 0, plus one.
fn extent(sizes: &[(usize, isize)]) -> usize {
    if sizes.iter().any(|s| s.0 == 0) {
        return 0;
    }
    1 + sizes.iter().map(|&(len, stride)| (len - 1) * stride.unsigned_abs()).sum::<usize>()
}

fn check<T: Number>(isa: Isa, spec: &GemmSpec, tile: GemmTile, threads: usize) {
    let mut random = Random(spec.m as u64 * 31 + spec.n as u64 * 17 + spec.k as u64);
    let batch = |f: fn(&BatchAxis) -> isize| spec.batch.iter().map(move |x| (x.len, f(x)));
    let a_len = extent(
        &[(spec.m, spec.a.row), (spec.k, spec.a.col)].into_iter().chain(batch(|x| x.a)).collect::<Vec<_>>(),
    );
    let b_len = extent(
        &[(spec.k, spec.b.row), (spec.n, spec.b.col)].into_iter().chain(batch(|x| x.b)).collect::<Vec<_>>(),
    );
    let c_len = extent(
        &[(spec.m, spec.c_row as isize), (spec.n, 1)].into_iter().chain(batch(|x| x.c)).collect::<Vec<_>>(),
    );
    let (a, b) = (random.fill::<T>(a_len), random.fill::<T>(b_len));
    let bias = random.fill::<T>(spec.m.max(spec.n));
    let mut c = vec![T::NAN; c_len + 2 * MARGIN];
    let plan = GemmPlan::<T>::new(isa, spec.clone(), tile, threads);
    run(&plan, &a, &b, &mut c, &bias);

    let mut touched = vec![false; c.len()];
    let matrices: usize = spec.batch.iter().map(|x| x.len).product();
    for matrix in 0..matrices {
        let (mut rest, mut a0, mut b0, mut c0) = (matrix, 0, 0, MARGIN as isize);
        for axis in spec.batch.iter().rev() {
            let index = (rest % axis.len) as isize;
            rest /= axis.len;
            (a0, b0, c0) = (a0 + index * axis.a, b0 + index * axis.b, c0 + index * axis.c);
        }
        for i in 0..spec.m {
            for j in 0..spec.n {
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for p in 0..spec.k as isize {
                    let x = a[(a0 + i as isize * spec.a.row + p * spec.a.col) as usize].value();
                    let y = b[(b0 + p * spec.b.row + j as isize * spec.b.col) as usize].value();
                    sum += x * y;
                    magnitude += (x * y).abs();
                }
                match spec.epilogue.bias {
                    Bias::None => {}
                    Bias::PerRow => sum += bias[i].value(),
                    Bias::PerColumn => sum += bias[j].value(),
                }
                if spec.epilogue.relu {
                    sum = sum.max(0.0);
                }
                let at = c0 as usize + i * spec.c_row + j;
                touched[at] = true;
                let got = c[at].value();
                let bound =
                    (spec.k + 2) as f64 * T::ROUNDOFF * (magnitude + 1.0) + T::OUT_ROUNDOFF * sum.abs();
                assert!((got - sum).abs() <= bound, "{isa:?} {spec:?} [{i}, {j}]: {got} is not {sum}");
            }
        }
    }
    for (at, touched) in touched.into_iter().enumerate() {
        assert!(touched || c[at].value().is_nan(), "{isa:?} {spec:?} wrote outside of C at {at}");
    }
}

const SIZES: [(usize, usize, usize); 14] = [
    (0, 5, 3),
    (5, 0, 3),
    (1, 1, 1),
    (1, 17, 5),
    (19, 1, 7),
    (2, 3, 31),
    (7, 16, 16),
    (13, 29, 37),
    (8, 48, 64),
    (67, 10, 41),
    (64, 129, 53),
    (97, 101, 103),
    (31, 257, 9),
    (130, 61, 131),
];

/// Row-major, transposed, and neither stride 1.
fn layouts(rows: usize, cols: usize) -> [MatrixStrides; 3] {
    [
        MatrixStrides::row_major(cols + 3),
        MatrixStrides::transposed(rows + 1),
        MatrixStrides { row: 2 * cols as isize + 1, col: 2 },
    ]
}

#[test]
fn every_size_and_layout_agrees_with_f64() {
    for isa in available() {
        for (m, n, k) in SIZES {
            for a in layouts(m, k) {
                for b in layouts(k, n) {
                    let spec = GemmSpec { a, b, c_row: n + 2, ..GemmSpec::dense(m, n, k) };
                    check::<f32>(isa, &spec, GemmTile::default(), 2);
                    check::<f16>(isa, &spec, GemmTile::default(), 2);
                    check::<f64>(isa, &spec, GemmTile::default(), 2);
                }
            }
        }
    }
}

#[test]
fn small_blocks_and_many_threads_agree_with_f64() {
    let tile = GemmTile { mc: 9, nc: 33, kc: 17 };
    for isa in available() {
        for (m, n, k) in [(130, 61, 131), (97, 101, 103), (200, 300, 40)] {
            for a in layouts(m, k) {
                for b in layouts(k, n) {
                    let spec = GemmSpec { a, b, ..GemmSpec::dense(m, n, k) };
                    check::<f32>(isa, &spec, tile, 16);
                    check::<f16>(isa, &spec, tile, 16);
                }
            }
        }
    }
}

#[test]
fn with_zero_k_writes_the_epilogue_of_zeros() {
    for isa in available() {
        for bias in [Bias::None, Bias::PerRow, Bias::PerColumn] {
            let epilogue = Epilogue { bias, relu: true };
            let spec = GemmSpec { epilogue, ..GemmSpec::dense(5, 21, 0) };
            check::<f32>(isa, &spec, GemmTile::default(), 1);
            check::<f16>(isa, &spec, GemmTile::default(), 1);
            check::<f64>(isa, &spec, GemmTile::default(), 1);
        }
    }
}

#[test]
fn epilogues_apply_once_after_the_whole_sum() {
    let tile = GemmTile { mc: 16, nc: 48, kc: 10 };
    for isa in available() {
        for bias in [Bias::None, Bias::PerRow, Bias::PerColumn] {
            for relu in [false, true] {
                let spec = GemmSpec { epilogue: Epilogue { bias, relu }, ..GemmSpec::dense(37, 53, 41) };
                check::<f32>(isa, &spec, tile, 3);
                check::<f16>(isa, &spec, tile, 3);
                check::<f64>(isa, &spec, tile, 3);
            }
        }
    }
}

#[test]
fn batches_broadcast_with_stride_zero() {
    let (m, n, k) = (9, 20, 11);
    let batch = vec![
        BatchAxis { len: 3, a: (m * k) as isize, b: 0, c: 2 * (m * n) as isize },
        BatchAxis { len: 2, a: 0, b: (k * n) as isize, c: (m * n) as isize },
    ];
    for isa in available() {
        let spec = GemmSpec { batch: batch.clone(), ..GemmSpec::dense(m, n, k) };
        check::<f32>(isa, &spec, GemmTile::default(), 2);
        check::<f16>(isa, &spec, GemmTile::default(), 2);
        check::<f64>(isa, &spec, GemmTile::default(), 2);
        let empty = BatchAxis { len: 0, a: 0, b: 0, c: 0 };
        let plan = GemmPlan::<f32>::new(
            isa,
            GemmSpec { batch: vec![empty], ..GemmSpec::dense(m, n, k) },
            GemmTile::default(),
            2,
        );
        assert_eq!(plan.groups(), 0);
    }
}

#[test]
fn nan_and_infinity_propagate() {
    for isa in available() {
        let (m, n, k) = (9, 35, 20);
        let mut a = vec![0.0f32; m * k];
        let mut b = vec![0.0f32; k * n];
        a[4 * k + 7] = f32::NAN; // Row 4, against zeros.
        b[3 * n + 34] = f32::INFINITY; // Column 34, against zeros: also NaN.
        a[6 * k + 2] = f32::NEG_INFINITY;
        b[2 * n + 10] = -1.0; // [6, 10] is infinity alone; the rest of row 6 is infinity times zero.
        let mut c = vec![0.0; m * n + 2 * MARGIN];
        let plan = GemmPlan::<f32>::new(isa, GemmSpec::dense(m, n, k), GemmTile::default(), 2);
        run(&plan, &a, &b, &mut c, &[]);
        for i in 0..m {
            for j in 0..n {
                let got = c[MARGIN + i * n + j];
                match (i, j) {
                    (6, 10) => assert_eq!(got, f32::INFINITY, "{isa:?}"),
                    (4, _) | (6, _) | (_, 34) => assert!(got.is_nan(), "{isa:?} [{i}, {j}]: {got}"),
                    _ => assert_eq!(got, 0.0, "{isa:?} [{i}, {j}]"),
                }
            }
        }
        let relu = Epilogue { relu: true, ..Epilogue::default() };
        let plan = GemmPlan::<f32>::new(
            isa,
            GemmSpec { epilogue: relu, ..GemmSpec::dense(m, n, k) },
            GemmTile::default(),
            1,
        );
        run(&plan, &a, &b, &mut c, &[]);
        assert!(c[MARGIN + 4 * n].is_nan(), "{isa:?}: a ReLU keeps NaN");
    }
}

#[test]
fn results_do_not_depend_on_tiles_or_threads() {
    let (m, n, k) = (150, 130, 300);
    let mut random = Random(7);
    let (a, b) = (random.fill::<f32>(m * k), random.fill::<f32>(k * n));
    for isa in available() {
        let mut results = Vec::new();
        for (tile, threads) in
            [(GemmTile::default(), 1), (GemmTile::default(), 7), (GemmTile { mc: 16, nc: 64, kc: 13 }, 2)]
        {
            let mut c = vec![f32::NAN; m * n + 2 * MARGIN];
            let plan = GemmPlan::<f32>::new(isa, GemmSpec::dense(m, n, k), tile, threads);
            run(&plan, &a, &b, &mut c, &[]);
            results.push(c[MARGIN..MARGIN + m * n].to_vec());
        }
        assert!(results.iter().all(|c| *c == results[0]), "{isa:?}");
    }
}
