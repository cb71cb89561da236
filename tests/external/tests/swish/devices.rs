//! The devices that every test runs on.

use halite::profiles::SearchPath;
use halite::{Engine, Session};

/// The devices with a kernel of swish. The emulator's library lies beside the test's executable.
pub(crate) const DEVICES: [&str; 2] = ["cpu:0", "npu:0"];

/// A session that knows swish and, of profiles, only what `path` names.
pub(crate) fn session(path: SearchPath) -> Session {
    let builder = Session::builder().without_environment().profiles(path);
    halite_external_op::register(builder).build().expect("the session has all its parts")
}

/// Every device, with the built-in profiles.
pub(crate) fn engines() -> [Engine; 2] {
    let session = session(SearchPath::builtin_only());
    DEVICES.map(|device| session.open(device).unwrap_or_else(|error| panic!("{device}: {error}")))
}

/// Seeded numbers in [-1, 1): a linear congruential generator (Knuth's MMIX constants), upper bits.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
