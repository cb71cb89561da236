//! CUDA kernels without a GPU: their text, compiled as C++ behind `simulator/device.hpp` and run on the host.
//!
//! The text is the one that NVRTC gets, but for `warp.cu`, whose instructions `simulator/warp.hpp` has as plain C++. The
//! simulator ends a run, and the test with it, at races and reads out of bounds.

use crate::kernels::cpu::harness::Memory;
use crate::lower::{Launch, LaunchArg, Lowered, TensorType};
use halite_hal::{KernelSource, Scalar};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Compiles kernels, each text once, in a folder that is removed when dropped.
pub(super) struct Simulator {
    folder: PathBuf,
    programs: HashMap<String, PathBuf>,
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Simulator {
    /// `None`, with a printed reason, where there is no C++ compiler.
    pub(super) fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !cfg!(target_os = "linux") {
            println!("skipped: the simulator of CUDA kernels switches stacks as Linux does");
            return None;
        }
        if let Err(error) = Command::new("c++").arg("--version").output() {
            println!("skipped: no C++ compiler: {error}");
            return None;
        }
        let name =
            format!("halite-simulator-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
        Some(Self { folder, programs: HashMap::new() })
    }

    /// Runs launches; outputs start as NaN, and so does the workspace.
    pub(super) fn run(
        &mut self,
        lowered: &Lowered,
        inputs: &[(TensorType, Memory)],
        outputs: &[TensorType],
    ) -> Vec<Memory> {
        let mut buffers: Vec<Memory> = inputs.iter().map(|(_, memory)| memory.clone()).collect();
        buffers.extend(outputs.iter().map(|tensor| Memory::poisoned(tensor.len_bytes())));
        buffers.push(Memory::poisoned(lowered.workspace_bytes as usize));
        for launch in &lowered.launches {
            self.launch(launch, &mut buffers, inputs.len());
        }
        buffers.truncate(inputs.len() + outputs.len());
        buffers.split_off(inputs.len())
    }

    /// Runs one launch on the inputs, of which there are so many, the outputs and the workspace.
    pub(super) fn launch(&mut self, launch: &Launch, buffers: &mut [Memory], inputs: usize) {
        let KernelSource::Text { source, entry, options, .. } = &launch.source else {
            panic!("{} is no text", launch.source.name())
        };
        let program = self.program(source);
        let shared = options.split("--dynamic-shared-bytes=").nth(1).map_or(0, |bytes| {
            bytes.split(' ').next().and_then(|bytes| bytes.parse().ok()).expect("it is a number of bytes")
        });
        let mut numbers: Vec<u64> = vec![launch.grid[0].into(), launch.grid[1].into(), shared];
        numbers.push(buffers.len() as u64);
        let mut case = bytes_of(&numbers);
        for buffer in buffers.iter() {
            case.extend((buffer.bytes().len() as u64).to_le_bytes());
            case.extend(buffer.bytes());
        }
        let workspace = buffers.len() as u64 - 1;
        case.extend((launch.args.len() as u64).to_le_bytes());
        for arg in &launch.args {
            case.extend(bytes_of(&match *arg {
                LaunchArg::Input(n) => [0, n as u64, 0],
                LaunchArg::Output(n) => [0, (inputs + n) as u64, 0],
                LaunchArg::Workspace { offset, .. } => [0, workspace, offset],
                LaunchArg::Literal(Scalar::I32(value)) => [1, u64::from(value as u32), 0],
                LaunchArg::Literal(Scalar::I64(value)) => [1, value as u64, 0],
                other => panic!("{entry} takes {other:?}, which the simulator does not pass"),
            }));
        }
        let (from, to) = (self.folder.join("case"), self.folder.join("result"));
        std::fs::write(&from, case).expect("the folder can be written");
        let result = Command::new(&program).args([&from, &to]).output().expect("the program was compiled");
        let message = String::from_utf8_lossy(&result.stderr);
        assert!(result.status.success(), "{entry}: {} {message}", result.status);
        let all = std::fs::read(&to).expect("the program wrote its result");
        let mut rest = all.as_slice();
        for buffer in buffers {
            let (own, others) = rest.split_at(buffer.bytes().len());
            buffer.bytes_mut().copy_from_slice(own);
            rest = others;
        }
    }

    /// The program of a text, compiled now or before.
    fn program(&mut self, source: &str) -> PathBuf {
        if let Some(program) = self.programs.get(source) {
            return program.clone();
        }
        let prelude = include_str!("../prelude.cu");
        assert!(source.contains(prelude), "the text is CUDA C");
        // Half precision is converted by numeric.cl, where the prelude does not.
        let behind = "\n#undef f16_from_bits\n#undef f16_to_bits\n";
        let text = source
            .replace(prelude, &[include_str!("simulator/device.hpp"), prelude, behind].concat())
            .replace(include_str!("../warp.cu"), include_str!("simulator/warp.hpp"))
            + "\nSIMULATOR_MAIN\n";
        let program = self.folder.join(format!("kernel{}", self.programs.len()));
        let file = program.with_extension("cpp");
        std::fs::write(&file, text).expect("the folder can be written");
        compile(&file, &program);
        self.programs.insert(source.to_owned(), program.clone());
        program
    }
}

fn compile(file: &Path, program: &Path) {
    let mut command = Command::new("c++");
    // Jumps between stacks are no errors here, which some systems' hardened defaults take them for.
    command.args(["-std=c++17", "-O1", "-w", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-o"]);
    let result = command.arg(program).arg(file).output().expect("there is a compiler");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}

fn bytes_of(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
