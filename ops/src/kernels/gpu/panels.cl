// Products of matrices on processors with vectors and caches, as in contraction.cl, whose names hold here too.
//
// PACK_LHS and PACK_RHS write the operands as panels [batch, panel, K, ROWS] and [batch, panel, K, COLUMNS], with zeros
// beyond the edges. MULTIPLY has a thread for ROWS x COLUMNS of out, in ROWS x VECTORS vectors of WIDTH; it reads a panel
// of either from beginning to end. Neighbouring threads share the panel of rhs, which is the larger one, in the cache.
// A launch takes `batches` from `first_batch` on, and `panels` panels of rhs from `first_panel` on, so that the
// workspace stays small. No local memory, no barrier. OpenCL C only: CUDA has no such vectors.

#define K (K_OUTER * K_INNER)
#define PANELS_M ((M + ROWS - 1) / ROWS)
#define SLICES ((K + DEPTH - 1) / DEPTH)

#if defined(PACK_LHS)

// A thread for a panel and DEPTH steps of k.
KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX place = GROUP * THREADS + LOCAL_X;
    const INDEX slice = place % SLICES, panel = place / SLICES;
    const INDEX first_row = panel % PANELS_M * ROWS, batch = first_batch + panel / PANELS_M;
    if (panel < PANELS_M * batches) {
        BASES
        const INDEX from = slice * DEPTH;
        GLOBAL ACC* to = packed + (panel * K + from) * ROWS;
        if (first_row + ROWS <= M && from + DEPTH <= K) {
            ACC block[DEPTH][ROWS];
            for (i32 r = 0; r < ROWS; r++) {
                for (i32 k = 0; k < DEPTH; k++) {
                    block[k][r] = LHS(first_row + r, (from + k) / K_INNER, (from + k) % K_INNER);
                }
            }
            for (i32 k = 0; k < DEPTH; k++) {
                for (i32 r = 0; r < ROWS; r++) to[k * ROWS + r] = block[k][r];
            }
        } else {
            for (INDEX k = from; k < from + DEPTH && k < K; k++, to += ROWS) {
                for (i32 r = 0; r < ROWS; r++) {
                    to[r] = first_row + r < M ? LHS(first_row + r, k / K_INNER, k % K_INNER) : (ACC)0;
                }
            }
        }
    }
}

#elif defined(PACK_RHS)

// A thread for a panel and DEPTH steps of k.
KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX place = GROUP * THREADS + LOCAL_X;
    const INDEX slice = place % SLICES, panel = place / SLICES;
    const INDEX first_column = (first_panel + panel % panels) * COLUMNS, batch = first_batch + panel / panels;
    if (panel < panels * batches) {
        BASES
        const INDEX from = slice * DEPTH, end = from + DEPTH < K ? from + DEPTH : K;
        GLOBAL ACC* to = packed + (panel * K + from) * COLUMNS;
        for (INDEX k = from; k < end; k++, to += COLUMNS) {
            const INDEX outer = k / K_INNER, inner = k % K_INNER;
            if (first_column + COLUMNS <= N) {
                for (i32 c = 0; c < COLUMNS; c++) to[c] = RHS(outer, inner, first_column + c);
            } else {
                for (i32 c = 0; c < COLUMNS; c++) {
                    to[c] = first_column + c < N ? RHS(outer, inner, first_column + c) : (ACC)0;
                }
            }
        }
    }
}

#elif defined(MULTIPLY)

KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX place = GROUP * THREADS + LOCAL_X;
    const INDEX row_panel = place % PANELS_M, panel = place / PANELS_M;
    if (panel < panels * batches) {
        const INDEX slot = panel / panels;
        const GLOBAL ACC* lhs = packed_lhs + (slot * PANELS_M + row_panel) * K * ROWS;
        const GLOBAL VECTOR* rhs = (const GLOBAL VECTOR*)(packed_rhs + panel * K * COLUMNS);
        VECTOR sum[ROWS][VECTORS];
        for (i32 r = 0; r < ROWS; r++) {
            for (i32 v = 0; v < VECTORS; v++) sum[r][v] = (VECTOR)(0);
        }
        for (INDEX k = 0; k < K; k++, lhs += ROWS, rhs += VECTORS) {
            for (i32 r = 0; r < ROWS; r++) {
                for (i32 v = 0; v < VECTORS; v++) sum[r][v] = MULTIPLY_ADD((VECTOR)(lhs[r]), rhs[v], sum[r][v]);
            }
        }

        union { VECTOR vectors[VECTORS]; ACC elements[COLUMNS]; } line;
        const INDEX batch = first_batch + slot;
        const INDEX first_row = row_panel * ROWS, first_column = (first_panel + panel % panels) * COLUMNS;
        for (i32 r = 0; r < ROWS && first_row + r < M; r++) {
            for (i32 v = 0; v < VECTORS; v++) line.vectors[v] = sum[r][v];
            if (first_column + COLUMNS <= N) {
                for (i32 c = 0; c < COLUMNS; c++) FINISH(batch, first_row + r, first_column + c, line.elements[c]);
            } else {
                for (i32 c = 0; c < COLUMNS && first_column + c < N; c++) {
                    FINISH(batch, first_row + r, first_column + c, line.elements[c]);
                }
            }
        }
    }
}

#endif
