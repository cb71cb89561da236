// Instructions of NVIDIA's GPUs that CUDA C has no word for, one function each, for tensor_cores.cu. Nothing else is here,
// so that what stands above can be run by a simulator which has these functions instead (tests/simulator).
//
// Sources: PTX ISA 8.5, "Data Movement and Conversion Instructions" (cp.async, ldmatrix), "Matrix multiply-accumulate
// operation using mma instruction". Addresses of shared memory are 32-bit, as shared_address gives them.

// Shared memory whose bytes the launch decides on.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]

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

#ifdef WARPGROUPS
// Products of four warps, which a part of the device of their own computes while the warps go on (PTX ISA, "Asynchronous
// Warpgroup Level Matrix Multiply-Accumulate Instructions"). It reads shared memory, which others have to show to it.

// Shows to it what this thread wrote or copied.
FN void show_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Begins a group of products; before, the registers of sums belong to the thread.
FN void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FN void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until no more than the last LEFT groups of products are under way.
template <int LEFT> FN void await_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }

// A matrix of 16-bit elements in lines of 128 bytes, 8 of them to 1024, whose chunks of 16 bytes are exchanged by the number
// of their line; `panels` bytes lie between such columns of lines.
FN u64 describe_matrix(u32 at, u32 panels) {
    return (u64)((at & 0x3ffffu) >> 4) | (u64)(panels >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// sum += lhs * rhs, of 64 x 16 by 16 x N elements in shared memory, in f32; lines run along k, or across it where an operand
// is turned. A lane's sums are those of multiply_f16 in 16 rows for each warp, 8 columns a line.
#define SUMS(j) "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3])
#define MULTIPLY_NAME multiply_warpgroup_f16
#define MULTIPLY_TYPES "f16.f16"
template <bool TURNS_LHS, bool TURNS_RHS>
FN void MULTIPLY_NAME(f32 (&sum)[16][4], u64 lhs, u64 rhs) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.b32 adds, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." MULTIPLY_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63"
        "}, %64, %65, adds, 1, 1, %66, %67; }"
        : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7), SUMS(8), SUMS(9),
          SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15)
        : "l"(lhs), "l"(rhs), "n"(TURNS_LHS ? 1 : 0), "n"(TURNS_RHS ? 1 : 0));
}
template <bool TURNS_LHS, bool TURNS_RHS>
FN void MULTIPLY_NAME(f32 (&sum)[32][4], u64 lhs, u64 rhs) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.b32 adds, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." MULTIPLY_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
        "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "
        "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "
        "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, adds, 1, 1, %130, %131; }"
        : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7), SUMS(8), SUMS(9),
          SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15), SUMS(16), SUMS(17), SUMS(18),
          SUMS(19), SUMS(20), SUMS(21), SUMS(22), SUMS(23), SUMS(24), SUMS(25), SUMS(26), SUMS(27),
          SUMS(28), SUMS(29), SUMS(30), SUMS(31)
        : "l"(lhs), "l"(rhs), "n"(TURNS_LHS ? 1 : 0), "n"(TURNS_RHS ? 1 : 0));
}
#undef MULTIPLY_NAME
#undef MULTIPLY_TYPES
#define MULTIPLY_NAME multiply_warpgroup_bf16
#define MULTIPLY_TYPES "bf16.bf16"
template <bool TURNS_LHS, bool TURNS_RHS>
FN void MULTIPLY_NAME(f32 (&sum)[16][4], u64 lhs, u64 rhs) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.b32 adds, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." MULTIPLY_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63"
        "}, %64, %65, adds, 1, 1, %66, %67; }"
        : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7), SUMS(8), SUMS(9),
          SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15)
        : "l"(lhs), "l"(rhs), "n"(TURNS_LHS ? 1 : 0), "n"(TURNS_RHS ? 1 : 0));
}
template <bool TURNS_LHS, bool TURNS_RHS>
FN void MULTIPLY_NAME(f32 (&sum)[32][4], u64 lhs, u64 rhs) {
    asm volatile(
        "{ .reg .pred adds; setp.ne.b32 adds, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." MULTIPLY_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
        "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "
        "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "
        "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, adds, 1, 1, %130, %131; }"
        : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7), SUMS(8), SUMS(9),
          SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15), SUMS(16), SUMS(17), SUMS(18),
          SUMS(19), SUMS(20), SUMS(21), SUMS(22), SUMS(23), SUMS(24), SUMS(25), SUMS(26), SUMS(27),
          SUMS(28), SUMS(29), SUMS(30), SUMS(31)
        : "l"(lhs), "l"(rhs), "n"(TURNS_LHS ? 1 : 0), "n"(TURNS_RHS ? 1 : 0));
}
#undef MULTIPLY_NAME
#undef MULTIPLY_TYPES
#undef SUMS
#endif
