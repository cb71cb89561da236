//! Programs of random commands, beside a model on the host.

use super::{Tests, in_threads};
use crate::context::Context;
use crate::model::{Mix, Program};

pub(super) fn tests(tests: &mut Tests) {
    let kinds: [(&str, &str, u64, Mix); 6] = [
        ("one-stream", "writes, fills, copies and reads on one stream", 6, Mix { streams: 1, ..Mix::PLAIN }),
        (
            "three-streams",
            "the same on three streams, ordered by events",
            6,
            Mix { streams: 3, ..Mix::PLAIN },
        ),
        (
            "kernels",
            "kernels among copies, on two streams",
            4,
            Mix { streams: 2, kernels: true, ..Mix::PLAIN },
        ),
        (
            "built-ins",
            "built-ins among copies, on two streams",
            4,
            Mix { streams: 2, builtins: true, ..Mix::PLAIN },
        ),
        (
            "lists",
            "replayed lists among direct commands, on two streams",
            4,
            Mix { streams: 2, lists: true, ..Mix::PLAIN },
        ),
        (
            "allocations",
            "buffers that come and go among everything else",
            4,
            Mix { streams: 3, kernels: true, builtins: true, lists: true, allocations: true },
        ),
    ];
    for (name, text, seeds, mix) in kinds {
        for seed in 0..seeds {
            tests.add(
                format!("{name}-{seed}"),
                format!("{text}, give what a model on the host gives"),
                move |context| check(context, seed, mix),
            );
        }
    }
    for seed in 0..3u64 {
        tests.add(
            format!("threads-{seed}"),
            "random programs of four threads give what their models give",
            move |context| {
                in_threads(4, |index| {
                    check(context, 1000 * (seed + 1) + index as u64, Mix { streams: 2, ..Mix::PLAIN })
                })
            },
        );
    }
}

fn check(context: &Context, seed: u64, mix: Mix) -> crate::Outcome {
    let seed = context.seed.wrapping_mul(0x1_0000).wrapping_add(seed);
    Program::new(context, seed, mix)?.check(context)
}
