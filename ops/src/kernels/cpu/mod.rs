//! Native kernels for the CPU.
