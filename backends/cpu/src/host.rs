//! What the processor and the operating system tell about themselves.

use std::num::NonZero;

/// Name and maker of the processor.
pub(crate) struct Processor {
    pub(crate) name: String,
    pub(crate) vendor: String,
}

/// Asks the operating system for the processor's name; falls back to the architecture's.
pub(crate) fn processor() -> Processor {
    let mut system = sysinfo::System::new();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let text = |read: fn(&sysinfo::Cpu) -> &str| {
        system.cpus().first().map(|cpu| read(cpu).trim().to_owned()).unwrap_or_default()
    };
    let name = text(sysinfo::Cpu::brand);
    let name = if name.is_empty() { format!("{} processor", std::env::consts::ARCH) } else { name };
    Processor { name, vendor: text(sysinfo::Cpu::vendor_id) }
}

/// Bytes that this process could still take: what the system calls available, within the limit of its control
/// group. 0 when the system does not tell.
pub(crate) fn available_memory_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory_specifics(sysinfo::MemoryRefreshKind::nothing().with_ram());
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    system.available_memory().min(group)
}

/// Cores that this process may use.
pub(crate) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

macro_rules! detected {
    ($detect:ident: $($feature:tt)*) => {
        [$(($feature, std::arch::$detect!($feature))),*]
    };
}

/// Instruction sets that kernels may require, by the names of Rust's target features.
pub(crate) fn features() -> Vec<String> {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    let known = detected!(is_x86_feature_detected:
        "sse2" "sse4.1" "sse4.2" "ssse3" "avx" "avx2" "fma" "f16c" "bmi1" "bmi2" "popcnt" "avxvnni"
        "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni"
        "avx512bitalg" "avx512vpopcntdq" "avx512bf16" "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    let known = detected!(is_aarch64_feature_detected:
        "neon" "fp16" "fhm" "dotprod" "bf16" "i8mm" "sve" "sve2");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&str, bool); 0] = [];
    known.iter().filter(|(_, there)| *there).map(|(name, _)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_a_name_and_memory() {
        assert!(!processor().name.is_empty());
        assert!(available_threads() >= 1);
        if cfg!(target_os = "linux") {
            assert!(available_memory_bytes() > 1 << 20);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_x86_64_processor_has_sse2() {
        assert!(features().iter().any(|feature| feature == "sse2"));
    }
}
