//! Products in f64, for references and gradient checks: plain loops, vectorised by the compiler.

use super::{Bias, GemmSpec, Part};
use crate::kernels::cpu::simd::{Simd, Task};

/// One group's part.
pub(super) struct Plain<'a> {
    pub(super) spec: &'a GemmSpec,
    pub(super) part: Part<f64>,
}

impl Task for Plain<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Plain { spec, part } = self;
        // SAFETY: the part lies inside C, its rows and columns inside the operands and the bias, and
        // nobody else touches this part of C.
        unsafe {
            let b = part.b.offset(part.col as isize * spec.b.col);
            for i in part.row..part.row + part.rows {
                let c = std::slice::from_raw_parts_mut(part.c.add(i * spec.c_row + part.col), part.cols);
                c.fill(0.0);
                for p in 0..spec.k {
                    let x = *part.a.offset(i as isize * spec.a.row + p as isize * spec.a.col);
                    let b = b.offset(p as isize * spec.b.row);
                    if spec.b.col == 1 {
                        for (c, y) in c.iter_mut().zip(std::slice::from_raw_parts(b, part.cols)) {
                            *c += x * y;
                        }
                    } else {
                        for (j, c) in c.iter_mut().enumerate() {
                            *c += x * *b.offset(j as isize * spec.b.col);
                        }
                    }
                }
                for (j, c) in c.iter_mut().enumerate() {
                    match spec.epilogue.bias {
                        Bias::None => {}
                        Bias::PerRow => *c += *part.bias.add(i),
                        Bias::PerColumn => *c += *part.bias.add(part.col + j),
                    }
                    if spec.epilogue.relu && *c < 0.0 {
                        *c = 0.0;
                    }
                }
            }
        }
    }
}
