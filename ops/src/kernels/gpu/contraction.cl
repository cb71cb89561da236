// Products of matrices: out[batch, row, column] = finish(sum over k of lhs[batch, row, k] * rhs[batch, k, column]).
//
// The operands are given by what reads one element (dot.cl, conv.cl), so that a convolution is a product as well, and k
// is numbered [k_outer, k_inner]. From there: BASES, statements that prepare `batch` for reading; LHS(row, k_outer,
// k_inner), RHS(k_outer, k_inner, column); FINISH(batch, row, column, sum), which stores. Defined: BATCH, M, N, K_OUTER,
// K_INNER, ACC, K_IS_INNER where there is no k_outer, and the sizes of the strategy that is chosen:
//
// PLAIN: a thread for each element of out.
// TILED: a workgroup for TILE_M x TILE_N elements, a thread for ROWS x COLUMNS of them, in registers. With STAGED the
//        operands pass through local memory, TILE_K deep: ACC[TILE_K * (TILE_M + 1 + TILE_N)]. K may be cut into SPLITS
//        ranges of SPLIT_K, whose sums go to `partial`.
// SPLIT_SUM: adds them up, a thread for each element of out.

#define K (K_OUTER * K_INNER)
#ifdef K_IS_INNER
#define LHS_AT(row, k) LHS(row, 0, k)
#define RHS_AT(k, column) RHS(0, k, column)
#else
#define LHS_AT(row, k) LHS(row, (k) / K_INNER, (k) % K_INNER)
#define RHS_AT(k, column) RHS((k) / K_INNER, (k) % K_INNER, column)
#endif

#if defined(PLAIN)

KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX place = GROUP * THREADS + LOCAL_X;
    if (place < BATCH * M * N) {
        const INDEX column = place % N, row = place / N % M, batch = place / N / M;
        BASES
        ACC sum = 0;
#ifndef NOTHING_TO_SUM
        for (INDEX outer = 0; outer < K_OUTER; outer++) {
            for (INDEX inner = 0; inner < K_INNER; inner++) {
                sum = MULTIPLY_ADD(LHS(row, outer, inner), RHS(outer, inner, column), sum);
            }
        }
#endif
        FINISH(batch, row, column, sum);
    }
}

#elif defined(TILED)

#define TILES_M ((M + TILE_M - 1) / TILE_M)
#define TILES_N ((N + TILE_N - 1) / TILE_N)

// A thread's rows and columns come in runs, so that neighbouring threads read neighbouring elements.
#define ROW_OF(i) ((i) / ROW_RUN * (THREADS_Y * ROW_RUN) + (i32)LOCAL_Y * ROW_RUN + (i) % ROW_RUN)
#define COLUMN_OF(j) ((j) / COLUMN_RUN * (THREADS_X * COLUMN_RUN) + (i32)LOCAL_X * COLUMN_RUN + (j) % COLUMN_RUN)

KERNEL(THREADS_X, THREADS_Y) void NAME(PARAMETERS) {
    const INDEX tile = GROUP % (TILES_M * TILES_N), part = GROUP / (TILES_M * TILES_N);
    const INDEX split = part % SPLITS, batch = part / SPLITS;
    if (batch >= BATCH) return;
    const INDEX first_row = tile / TILES_N * TILE_M, first_column = tile % TILES_N * TILE_N;
    const INDEX k_from = split * SPLIT_K;
    const INDEX k_end = k_from + SPLIT_K < K ? k_from + SPLIT_K : K;
    BASES

    ACC sum[ROWS][COLUMNS];
    for (i32 i = 0; i < ROWS; i++) {
        for (i32 j = 0; j < COLUMNS; j++) sum[i][j] = 0;
    }
#ifdef STAGED
#define LHS_PITCH (TILE_M + 1)
    LOCAL_ARRAY(ACC, lhs_tile, TILE_K * LHS_PITCH);
    LOCAL_ARRAY(ACC, rhs_tile, TILE_K * TILE_N);
    const i32 thread = (i32)(LOCAL_Y * THREADS_X + LOCAL_X);
    for (INDEX k_tile = k_from; k_tile < k_end; k_tile += TILE_K) {
        for (i32 i = thread; i < TILE_M * TILE_K; i += THREADS) {
            const i32 row = LHS_K_INNERMOST ? i / TILE_K : i % TILE_M, k = LHS_K_INNERMOST ? i % TILE_K : i / TILE_M;
            const u8 inside = first_row + row < M && k_tile + k < k_end;
            lhs_tile[k * LHS_PITCH + row] = inside ? LHS_AT(first_row + row, k_tile + k) : (ACC)0;
        }
        for (i32 i = thread; i < TILE_N * TILE_K; i += THREADS) {
            const i32 column = RHS_K_INNERMOST ? i / TILE_K : i % TILE_N;
            const i32 k = RHS_K_INNERMOST ? i % TILE_K : i / TILE_N;
            const u8 inside = first_column + column < N && k_tile + k < k_end;
            rhs_tile[k * TILE_N + column] = inside ? RHS_AT(k_tile + k, first_column + column) : (ACC)0;
        }
        BARRIER();
        for (i32 k = 0; k < TILE_K; k++) {
            ACC of_lhs[ROWS], of_rhs[COLUMNS];
            for (i32 i = 0; i < ROWS; i++) of_lhs[i] = lhs_tile[k * LHS_PITCH + ROW_OF(i)];
            for (i32 j = 0; j < COLUMNS; j++) of_rhs[j] = rhs_tile[k * TILE_N + COLUMN_OF(j)];
            for (i32 i = 0; i < ROWS; i++) {
                for (i32 j = 0; j < COLUMNS; j++) sum[i][j] = MULTIPLY_ADD(of_lhs[i], of_rhs[j], sum[i][j]);
            }
        }
        BARRIER();
    }
#else
    // Rows and columns beyond the edge repeat the last one; their sums are not stored.
    INDEX rows[ROWS], columns[COLUMNS];
    for (i32 i = 0; i < ROWS; i++) rows[i] = first_row + ROW_OF(i) < M ? first_row + ROW_OF(i) : M - 1;
    for (i32 j = 0; j < COLUMNS; j++) columns[j] = first_column + COLUMN_OF(j) < N ? first_column + COLUMN_OF(j) : N - 1;
    for (INDEX k = k_from; k < k_end; k++) {
        ACC of_lhs[ROWS], of_rhs[COLUMNS];
        for (i32 i = 0; i < ROWS; i++) of_lhs[i] = LHS_AT(rows[i], k);
        for (i32 j = 0; j < COLUMNS; j++) of_rhs[j] = RHS_AT(k, columns[j]);
        for (i32 i = 0; i < ROWS; i++) {
            for (i32 j = 0; j < COLUMNS; j++) sum[i][j] = MULTIPLY_ADD(of_lhs[i], of_rhs[j], sum[i][j]);
        }
    }
#endif

    for (i32 i = 0; i < ROWS; i++) {
        const INDEX row = first_row + ROW_OF(i);
        for (i32 j = 0; j < COLUMNS; j++) {
            const INDEX column = first_column + COLUMN_OF(j);
            if (row < M && column < N) {
#if SPLITS > 1
                partial[((split * BATCH + batch) * M + row) * N + column] = sum[i][j];
#else
                FINISH(batch, row, column, sum[i][j]);
#endif
            }
        }
    }
}

#elif defined(SPLIT_SUM)

KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX place = GROUP * THREADS + LOCAL_X;
    if (place < BATCH * M * N) {
        ACC sum = 0;
        for (INDEX split = 0; split < SPLITS; split++) sum += partial[split * (BATCH * M * N) + place];
        FINISH(place / N / M, place / N % M, place % N, sum);
    }
}

#endif
