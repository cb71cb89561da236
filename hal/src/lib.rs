//! Hardware abstraction layer: devices, memory, streams, events and kernel launch.
