//! The software NPU, a plugin like any other.

pub mod machine;
