//! The NPU program format: records, builder, verifier and (dis)assembler.
