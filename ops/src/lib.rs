//! Tensors, op registry, graph, automatic differentiation, planning and kernels.
