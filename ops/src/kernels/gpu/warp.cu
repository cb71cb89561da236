// Instructions of NVIDIA's GPUs that CUDA C has no word for, one function each, for tensor_cores.cu. Nothing else is here,
// so that what stands above can be run by a simulator which has these functions instead (tests/simulator).
//
// Sources: PTX ISA 8.5, "Data Movement and Conversion Instructions" (cp.async, ldmatrix), "Matrix multiply-accumulate
// operation using mma instruction". Addresses of shared memory are 32-bit, as shared_address gives them.

// Shared memory whose bytes the launch decides on.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) u8 name[]

FN u32 shared_address(const void* place) { return (u32)__cvta_generic_to_shared(place); }

// Copies `bytes` of SIZE (16, 8 or 4) from global memory, and zeros behind them; both places are multiples of SIZE. Where
// there is such an instruction nobody waits: the copy belongs to the group that close_copies ends.
template <int SIZE> FN void copy_async(u32 to, const u16* from, i32 bytes) {
#if __CUDA_ARCH__ >= 800
    // What comes in one piece passes by the first cache, which has no use for it.
    if (SIZE == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(bytes), "n"(SIZE)
                     : "memory");
    }
#else
    u32 words[SIZE / 4];
    for (i32 i = 0; i < SIZE / 4; i++) {
        const u32 low = 4 * i < bytes ? from[2 * i] : 0, high = 4 * i + 2 < bytes ? from[2 * i + 1] : 0;
        words[i] = low | high << 16;
    }
    for (i32 i = 0; i < SIZE / 4; i++) {
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + 4 * i), "r"(words[i]) : "memory");
    }
#endif
}

FN void close_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until no more than the last LEFT groups of this thread's copies are under way.
template <int LEFT> FN void await_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Stores 16 bytes to shared memory.
FN void store_chunk(u32 to, const u32 (&words)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
}

// Loads four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8, which is 16 bytes in shared memory,
// and gets elements 2 * (i % 4) and the next of row i / 4 of each.
FN void load_matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// As load_matrices, of the transposed matrices: elements 2 * (i % 4) and the next of column i / 4.
FN void load_matrices_transposed(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// sum += lhs * rhs, of 16 x 16 by 16 x 8 elements, in f32. With g = lane / 4 and t = 2 * (lane % 4): lhs holds row g at t,
// row g + 8 at t, row g at t + 8, row g + 8 at t + 8, and the next element each; rhs holds rows t and t + 8, and the next
// one each, of column g; sum holds row g at t and t + 1, and row g + 8 at both.
FN void multiply_f16(f32 (&sum)[4], const u32 (&lhs)[4], u32 rhs0, u32 rhs1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(lhs[0]), "r"(lhs[1]), "r"(lhs[2]), "r"(lhs[3]), "r"(rhs0), "r"(rhs1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(lhs[0]), "r"(lhs[1]), "r"(rhs0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(lhs[2]), "r"(lhs[3]), "r"(rhs1));
#endif
}

#if __CUDA_ARCH__ >= 800
FN void multiply_bf16(f32 (&sum)[4], const u32 (&lhs)[4], u32 rhs0, u32 rhs1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(lhs[0]), "r"(lhs[1]), "r"(lhs[2]), "r"(lhs[3]), "r"(rhs0), "r"(rhs1));
}
#endif
