//! Numbers that depend on a seed alone, and schedules drawn with them.

/// Calls among which the rules of a drawn schedule strike first; tests and small programs make this many soon.
const FIRST_CALLS: u64 = 40;

/// What a drawn schedule chooses from. `N` is a call, `P` a probability, `T` a time of some milliseconds. Corrupted
/// copies are missing: they change numbers unless somebody looks.
const RULES: [&str; 24] = [
    "allocate@N=out-of-memory",
    "allocate@N=out-of-memory 3 times",
    "allocate~P=out-of-memory",
    "allocate@N=fail",
    "create-stream@N=out-of-memory",
    "load@N=build-error",
    "load@N=out-of-memory",
    "write@N=fail",
    "write~P=link",
    "read@N=fail",
    "read~P=link",
    "copy@N=link",
    "copy@N=fault",
    "fill@N=fail",
    "launch@N=fail",
    "launch@N=fault",
    "launch~P=fail",
    "launch@N=slow:T",
    "stream%N=fault 5 times",
    "record@N=out-of-memory",
    "wait@N=fail",
    "synchronize@N=timeout",
    "event@N=timeout",
    "device@N=lost",
];

/// The schedule of a seed: one to four rules.
pub(crate) fn script(seed: u64) -> String {
    let mut random = Random::new(seed);
    let count = 1 + random.below(4);
    let rules = (0..count).map(|_| {
        let rule = RULES[random.below(RULES.len() as u64) as usize];
        let call = 1 + random.below(FIRST_CALLS);
        let probability = (1 + random.below(20)) as f64 / 100.0;
        let milliseconds = 1 + random.below(5);
        rule.replace('N', &call.to_string())
            .replace('P', &probability.to_string())
            .replace('T', &format!("{milliseconds}ms"))
    });
    rules.collect::<Vec<_>>().join("; ")
}

/// A stream of numbers: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. The bias is that of a remainder: none that a schedule would show.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The number of call `call` for rule `rule`: no other call or thread has a part in it.
pub(crate) fn draw(seed: u64, rule: usize, call: u64) -> u64 {
    let mut by_rule = Random::new(seed ^ (rule as u64).rotate_left(32));
    Random::new(by_rule.next() ^ call).next()
}

/// A drawn number as a fraction in [0, 1).
pub(crate) fn fraction(drawn: u64) -> f64 {
    // 53 bits are what an f64 holds exactly.
    (drawn >> 11) as f64 / (1u64 << 53) as f64
}
