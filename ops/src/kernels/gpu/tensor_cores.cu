// Products of matrices on NVIDIA's tensor cores: f16 or bf16 elements, sums in f32. Stands behind warp.cu and the operands
// (dot.cl, conv.cl; see contraction.cl, whose names this file uses too).
//
// A workgroup computes TILE_M x TILE_N elements of out; THREADS_X / 32 warps stand side by side along n and THREADS_Y along
// m, each for WARP_M x WARP_N. Operands pass through shared memory in STAGES steps of TILE_K of k, of which all but one are
// on their way while one is multiplied: STAGES * (TILE_M + TILE_N) * TILE_K * 2 bytes. k may be cut into SPLITS ranges of
// SPLIT_K, whose sums go to `partial`, for SPLIT_SUM of contraction.cl.
//
// WARPGROUPS: groups of four warps multiply, THREADS_X / 128 of them along n and THREADS_Y along m, reading both operands
// from shared memory by themselves (Hopper's wgmma). One step is still being multiplied when the next one begins, so one
// step fewer is on its way. Tiles begin at multiples of 1024 bytes, and so 1024 bytes more are needed.
//
// A tile of an operand lies in lines: rows, where neighbours along k lie together in memory (SIDE_K_INNERMOST), or steps of
// k, where neighbours along m or n do. A line is chunks of 8 elements. SIDE_WIDTH elements (8, 4, 2) are copied at once,
// where everything that leads to a line is a multiple of them; with 0 they are read one by one, which serves any layout.
//
// The order of tiles, and of chunks in a line, follow CUTLASS (docs: "Efficient GEMM in CUDA", "Threadblock
// Rasterization").

#define K (K_OUTER * K_INNER)
#if K_OUTER == 1
#define LHS_AT(row, k) LHS(row, 0, k)
#define RHS_AT(k, column) RHS(0, k, column)
#else
#define LHS_AT(row, k) LHS(row, (k) / K_INNER, (k) % K_INNER)
#define RHS_AT(k, column) RHS((k) / K_INNER, (k) % K_INNER, column)
#endif
#define TILES_M ((M + TILE_M - 1) / TILE_M)
#define TILES_N ((N + TILE_N - 1) / TILE_N)

// Steps that are on their way while one is multiplied.
#ifdef WARPGROUPS
#define AHEAD (STAGES - 2)
#define GROUP_M (TILE_M / THREADS_Y)
#define WARP_M (GROUP_M / 4)
#define WARP_N (TILE_N / (THREADS_X / 128))
#else
#define AHEAD (STAGES - 1)
#define WARP_M (TILE_M / THREADS_Y)
#define WARP_N (TILE_N / (THREADS_X / 32))
#endif

// Rows of tiles that are worked at side by side, so that what they read is still in the cache.
#define BAND 8

// Where a chunk lies in its tile. Chunks of a line change places, so that those of one column in 8 lines lie in different
// banks.
template <int LINES, int CHUNKS> FN u32 chunk_place(i32 line, i32 chunk) {
#ifdef WARPGROUPS
    // Panels of 8 chunks: what the PTX ISA calls 128-byte swizzling.
    return (u32)((chunk / 8 * LINES + line) * 8 + (chunk % 8 ^ line & 7)) * 16;
#else
    constexpr i32 together = CHUNKS < 8 ? 8 / CHUNKS : 1, mask = CHUNKS < 8 ? CHUNKS - 1 : 7;
    return (u32)(line * CHUNKS + (chunk ^ (line / together & mask))) * 16;
#endif
}

// A thread's chunks of a tile: those of one column, every so many lines.
template <int LINES, int CHUNKS, typename Load> FN void for_chunks(Load load) {
    constexpr i32 step = THREADS / CHUNKS;
    const i32 thread = (i32)(LOCAL_Y * THREADS_X + LOCAL_X);
#pragma unroll
    for (i32 i = 0; i < LINES; i += step) {
        const i32 line = thread / CHUNKS + i;
        if (LINES % step == 0 || line < LINES) load(line, thread % CHUNKS);
    }
}

// Copies a tile whose first element is `from`; `lines` and `elements` are there, zeros take the place of the others.
template <int LINES, int CHUNKS, int WIDTH>
FN void copy_tile(u32 to, const u16* from, INDEX stride, INDEX lines, INDEX elements) {
    for_chunks<LINES, CHUNKS>([&](i32 line, i32 chunk) {
        const INDEX left = line < lines ? elements - chunk * 8 : 0;
#pragma unroll
        for (i32 part = 0; part < 8; part += WIDTH) {
            const i32 count = left - part >= WIDTH ? WIDTH : left > part ? (i32)(left - part) : 0;
            const u16* source = count > 0 ? from + (line * stride + (chunk * 8 + part)) : from;
            copy_async<2 * WIDTH>(to + chunk_place<LINES, CHUNKS>(line, chunk) + 2 * part, source, 2 * count);
        }
    });
}

// Reads a tile element by element: `at(line, place)` gives the bits of one.
template <int LINES, int CHUNKS, typename At> FN void gather_tile(u32 to, At at) {
    for_chunks<LINES, CHUNKS>([&](i32 line, i32 chunk) {
        u32 words[4];
#pragma unroll
        for (i32 i = 0; i < 4; i++) {
            const u32 low = at(line, chunk * 8 + 2 * i), high = at(line, chunk * 8 + 2 * i + 1);
            words[i] = low | high << 16;
        }
        store_chunk(to + chunk_place<LINES, CHUNKS>(line, chunk), words);
    });
}

#define LHS_CHUNKS ((LHS_K_INNERMOST ? TILE_K : TILE_M) / 8)
#define RHS_CHUNKS ((RHS_K_INNERMOST ? TILE_K : TILE_N) / 8)
#define LHS_LINES (LHS_K_INNERMOST ? TILE_M : TILE_K)
#define RHS_LINES (RHS_K_INNERMOST ? TILE_N : TILE_K)

#ifdef WARPGROUPS

// The matrix that begins at a row (or column, of rhs) and step of k of a tile.
template <bool IS_K_INNERMOST, int LINES> FN u64 matrix_of(u32 tile, i32 row, i32 k) {
    return IS_K_INNERMOST ? describe_matrix(tile + (u32)((k / 64 * LINES + row) * 128 + k % 64 * 2), 16)
                          : describe_matrix(tile + (u32)((row / 64 * LINES + k) * 128), LINES * 128);
}

// sum += the product of a step, which goes on until await_products.
FN void multiply_step(f32 (&sum)[WARP_M / 16][WARP_N / 8][4], u32 lhs_tile, u32 rhs_tile, i32 row, i32 column) {
    open_products();
#pragma unroll
    for (i32 k = 0; k < TILE_K; k += 16) {
        const u64 of_rhs = matrix_of<RHS_K_INNERMOST, RHS_LINES>(rhs_tile, column, k);
#pragma unroll
        for (i32 i = 0; i < GROUP_M / 64; i++) {
            const u64 of_lhs = matrix_of<LHS_K_INNERMOST, LHS_LINES>(lhs_tile, row + i * 64, k);
            MULTIPLY_WARPGROUP<!LHS_K_INNERMOST, !RHS_K_INNERMOST>(sum[i], of_lhs, of_rhs);
        }
    }
    close_products();
}

#else

// 16 rows and 16 steps of k.
FN void load_lhs(u32 (&to)[4], u32 tile, i32 row, i32 k, i32 lane) {
    if (LHS_K_INNERMOST) {
        load_matrices(to, tile + chunk_place<LHS_LINES, LHS_CHUNKS>(row + lane % 16, k / 8 + lane / 16));
    } else {
        const i32 line = k + lane / 16 * 8 + lane % 8;
        load_matrices_transposed(to, tile + chunk_place<LHS_LINES, LHS_CHUNKS>(line, row / 8 + lane / 8 % 2));
    }
}

// 16 columns and 16 steps of k: the first two for 8 columns, the others for the next 8.
FN void load_rhs(u32 (&to)[4], u32 tile, i32 column, i32 k, i32 lane) {
    if (RHS_K_INNERMOST) {
        const i32 line = column + lane / 16 * 8 + lane % 8;
        load_matrices(to, tile + chunk_place<RHS_LINES, RHS_CHUNKS>(line, k / 8 + lane / 8 % 2));
    } else {
        const i32 line = k + lane / 8 % 2 * 8 + lane % 8;
        load_matrices_transposed(to, tile + chunk_place<RHS_LINES, RHS_CHUNKS>(line, column / 8 + lane / 16));
    }
}

// sum += the product of a step.
FN void multiply_step(f32 (&sum)[WARP_M / 16][WARP_N / 8][4], u32 lhs_tile, u32 rhs_tile, i32 row, i32 column) {
    const i32 lane = (i32)LOCAL_X % 32;
#pragma unroll
    for (i32 k = 0; k < TILE_K; k += 16) {
        u32 of_lhs[WARP_M / 16][4], of_rhs[WARP_N / 16][4];
#pragma unroll
        for (i32 i = 0; i < WARP_M / 16; i++) load_lhs(of_lhs[i], lhs_tile, row + i * 16, k, lane);
#pragma unroll
        for (i32 j = 0; j < WARP_N / 16; j++) load_rhs(of_rhs[j], rhs_tile, column + j * 16, k, lane);
#pragma unroll
        for (i32 i = 0; i < WARP_M / 16; i++) {
#pragma unroll
            for (i32 j = 0; j < WARP_N / 8; j++) {
                MULTIPLY(sum[i][j], of_lhs[i], of_rhs[j / 2][j % 2 * 2], of_rhs[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
}

#endif

KERNEL(THREADS_X, THREADS_Y) void NAME(PARAMETERS) {
    DYNAMIC_SHARED(shared);
    const INDEX tile = GROUP % (TILES_M * TILES_N), part = GROUP / (TILES_M * TILES_N);
    const INDEX split = part % SPLITS, batch = part / SPLITS;
    if (batch >= BATCH) return;
    const INDEX band = tile / (BAND * TILES_N) * BAND, place = tile % (BAND * TILES_N);
    const INDEX rows_of_band = TILES_M - band < BAND ? TILES_M - band : BAND;
    const INDEX first_row = (band + place % rows_of_band) * TILE_M, first_column = place / rows_of_band * TILE_N;
    const INDEX k_from = split * SPLIT_K;
    const INDEX k_end = k_from + SPLIT_K < K ? k_from + SPLIT_K : K;
    const i32 steps = (i32)((k_end - k_from + TILE_K - 1) / TILE_K);
    BASES

#ifdef WARPGROUPS
    const u32 lhs_tiles = shared_address(shared) + 1023 & ~1023u;
#else
    const u32 lhs_tiles = shared_address(shared);
#endif
    const u32 rhs_tiles = lhs_tiles + STAGES * TILE_M * TILE_K * 2;
    auto load = [&](i32 step, i32 stage) {
        const INDEX k = k_from + (INDEX)step * TILE_K;
        const u32 lhs_tile = lhs_tiles + (u32)stage * (TILE_M * TILE_K * 2);
        const u32 rhs_tile = rhs_tiles + (u32)stage * (TILE_N * TILE_K * 2);
#if LHS_WIDTH > 0 && LHS_K_INNERMOST
        copy_tile<TILE_M, LHS_CHUNKS, LHS_WIDTH>(lhs_tile, lhs + (lhs_base + first_row * LHS_ROW + k), LHS_ROW,
                                                 M - first_row, k_end - k);
#elif LHS_WIDTH > 0
        copy_tile<TILE_K, LHS_CHUNKS, LHS_WIDTH>(lhs_tile, lhs + (lhs_base + first_row + k * LHS_COLUMN), LHS_COLUMN,
                                                 k_end - k, M - first_row);
#else
        gather_tile<LHS_LINES, LHS_CHUNKS>(lhs_tile, [&](i32 line, i32 place) -> u32 {
            const INDEX row = first_row + (LHS_K_INNERMOST ? line : place), step = k + (LHS_K_INNERMOST ? place : line);
            return row < M && step < k_end ? (u32)TO_BITS(LHS_AT(row, step)) : 0;
        });
#endif
#if RHS_WIDTH > 0 && RHS_K_INNERMOST
        copy_tile<TILE_N, RHS_CHUNKS, RHS_WIDTH>(rhs_tile, rhs + (rhs_base + first_column * RHS_COLUMN + k), RHS_COLUMN,
                                                 N - first_column, k_end - k);
#elif RHS_WIDTH > 0
        copy_tile<TILE_K, RHS_CHUNKS, RHS_WIDTH>(rhs_tile, rhs + (rhs_base + first_column + k * RHS_ROW), RHS_ROW,
                                                 k_end - k, N - first_column);
#else
        gather_tile<RHS_LINES, RHS_CHUNKS>(rhs_tile, [&](i32 line, i32 place) -> u32 {
            const INDEX column = first_column + (RHS_K_INNERMOST ? line : place);
            const INDEX step = k + (RHS_K_INNERMOST ? place : line);
            return column < N && step < k_end ? (u32)TO_BITS(RHS_AT(step, column)) : 0;
        });
#endif
    };

    const i32 lane = (i32)LOCAL_X % 32;
#ifdef WARPGROUPS
    // The rows of a warp in every 64 of its group.
    const i32 first_of_group = (i32)LOCAL_Y * GROUP_M, first_of_warp = first_of_group + (i32)LOCAL_X % 128 / 32 * 16;
    const i32 first_across = (i32)LOCAL_X / 128 * WARP_N;
#define ROW_STEP 64
#else
    const i32 first_of_group = (i32)LOCAL_Y * WARP_M, first_of_warp = first_of_group;
    const i32 first_across = (i32)LOCAL_X / 32 * WARP_N;
#define ROW_STEP 16
#endif
    f32 sum[WARP_M / 16][WARP_N / 8][4];
#pragma unroll
    for (i32 i = 0; i < WARP_M / 16; i++) {
#pragma unroll
        for (i32 j = 0; j < WARP_N / 8; j++) sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0;
    }

    // A group is closed for every step, also where none is left to load, so that one number says what is under way.
    for (i32 step = 0; step < AHEAD; step++) {
        if (step < steps) load(step, step);
        close_copies();
    }
    for (i32 step = 0, stage = 0, free_stage = AHEAD; step < steps; step++) {
        await_copies<AHEAD - 1>();
        const u32 lhs_tile = lhs_tiles + (u32)stage * (TILE_M * TILE_K * 2);
        const u32 rhs_tile = rhs_tiles + (u32)stage * (TILE_N * TILE_K * 2);
        const i32 next = step + AHEAD;
#ifdef WARPGROUPS
        show_copies();
        // Everybody's copies of this step are there, and the step before the last, whose stage is free now, is multiplied.
        BARRIER();
        multiply_step(sum, lhs_tile, rhs_tile, first_of_group, first_across);
        if (next < steps) load(next, free_stage);
        close_copies();
        await_products<1>();
#else
        // Everybody's copies of this step are there, and nobody reads the step before, whose stage is free now.
        BARRIER();
        if (next < steps) load(next, free_stage);
        close_copies();
        multiply_step(sum, lhs_tile, rhs_tile, first_of_group, first_across);
#endif
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        free_stage = free_stage + 1 < STAGES ? free_stage + 1 : 0;
    }
#ifdef WARPGROUPS
    await_products<0>();
#endif

#pragma unroll
    for (i32 i = 0; i < 2 * (WARP_M / 16); i++) {
        const INDEX row = first_row + (first_of_warp + i / 2 * ROW_STEP + i % 2 * 8 + lane / 4);
#pragma unroll
        for (i32 j = 0; j < WARP_N / 8; j++) {
            const INDEX column = first_column + (first_across + j * 8 + lane % 4 * 2);
            const f32 left = sum[i / 2][j][i % 2 * 2], right = sum[i / 2][j][i % 2 * 2 + 1];
            if (row < M && column < N) {
#if SPLITS > 1
                partial[((split * BATCH + batch) * M + row) * N + column] = left;
                if (column + 1 < N) partial[((split * BATCH + batch) * M + row) * N + column + 1] = right;
#elif defined(FINISH_PAIR)
                if (N % 2 == 0) {
                    FINISH_PAIR(batch, row, column, left, right);
                } else {
                    FINISH(batch, row, column, left);
                    if (column + 1 < N) FINISH(batch, row, column + 1, right);
                }
#else
                FINISH(batch, row, column, left);
                if (column + 1 < N) FINISH(batch, row, column + 1, right);
#endif
            }
        }
    }
}
