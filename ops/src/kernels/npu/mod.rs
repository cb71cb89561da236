//! Builders of NPU programs.
