//! Loads NPU plugins from shared libraries.
