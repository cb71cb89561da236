// Reductions: out[kept] = combination over the reduced points of element(kept, reduced).
//
// Points are numbered [kept_outer, kept_inner, outer, inner]: the innermost kept and the innermost reduced axis stand
// alone, so that walking along either takes no division. A launch may cut the reduced points in segments; each writes a
// partial result, and a second launch of this file combines those.
//
// Two strategies, both without assumptions about sizes:
//   ROWS: a workgroup for each kept point and segment. A thread combines LANES neighbours along inner at a time; in the
//         end lanes and threads combine as trees. Local memory: THREADS accumulators.
//   else: a thread for LANES neighbouring kept points and a segment; it walks over the reduced points alone.
//
// Defined: KEPT_OUTER, KEPT_INNER, OUTER, INNER; SEGMENTS of OUTER_SEGMENT by INNER_SEGMENT points; LANES; KEPT_BLOCKS,
// workgroups along kept_inner (not ROWS); ACC, IDENTITY, COMBINE(a, b); ARGMAX or not; STORE_RESULT(place, x).
// Generated: element(kept_outer, kept_inner, outer, inner PROGRAM_ARGUMENTS), and POSITION, its number along the reduced
// axes. PROGRAM_PARAMETERS and PROGRAM_ARGUMENTS begin with a comma, or are empty.
//
// Sums of floats add at most BATCH elements in a row before the sum is added to a total.

#define BATCH 64

typedef struct {
    ACC value;
#ifdef ARGMAX
    i32 at;
#endif
} Candidate;

FN Candidate nothing(void) {
    Candidate c;
    c.value = IDENTITY;
#ifdef ARGMAX
    c.at = 0x7fffffff;
#endif
    return c;
}

FN Candidate combine(Candidate a, Candidate b) {
#ifdef ARGMAX
    // A NaN is larger than any number; of equals the first wins.
    const u8 a_nan = a.value != a.value, b_nan = b.value != b.value;
    const u8 equal = a.value == b.value || (a_nan && b_nan);
    const u8 b_wins = equal ? b.at < a.at : b.value > a.value || (b_nan && !a_nan);
    a.value = b_wins ? b.value : a.value;
    a.at = b_wins ? b.at : a.at;
#else
    a.value = COMBINE(a.value, b.value);
#endif
    return a;
}

FN Candidate candidate(INDEX kept_outer, INDEX kept_inner, INDEX outer, INDEX inner PROGRAM_PARAMETERS) {
    Candidate c;
    c.value = element(kept_outer, kept_inner, outer, inner PROGRAM_ARGUMENTS);
#ifdef ARGMAX
    c.at = POSITION;
#endif
    return c;
}

#ifdef ROWS

KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX kept = GROUP % (KEPT_OUTER * KEPT_INNER), segment = GROUP / (KEPT_OUTER * KEPT_INNER);
    const INDEX kept_outer = kept / KEPT_INNER, kept_inner = kept % KEPT_INNER;
    const INDEX outer_from = OUTER > 1 ? segment * OUTER_SEGMENT : 0;
    const INDEX outer_end = outer_from + OUTER_SEGMENT < OUTER ? outer_from + OUTER_SEGMENT : OUTER;
    const INDEX inner_from = OUTER > 1 ? 0 : segment * INNER_SEGMENT;
    const INDEX inner_end = inner_from + INNER_SEGMENT < INNER ? inner_from + INNER_SEGMENT : INNER;

    Candidate total[LANES];
    for (i32 l = 0; l < LANES; l++) total[l] = nothing();
    for (INDEX outer = outer_from; outer < outer_end; outer++) {
        for (INDEX from = inner_from; from < inner_end; from += THREADS * LANES * BATCH) {
            Candidate part[LANES];
            for (i32 l = 0; l < LANES; l++) part[l] = nothing();
            const INDEX batch_end = from + THREADS * LANES * BATCH;
            const INDEX end = batch_end < inner_end ? batch_end : inner_end;
            INDEX inner = from + (INDEX)LOCAL_X * LANES;
            for (; inner + LANES <= end; inner += THREADS * LANES) {
                for (i32 l = 0; l < LANES; l++) {
                    part[l] = combine(part[l], candidate(kept_outer, kept_inner, outer, inner + l PROGRAM_ARGUMENTS));
                }
            }
            // At most one thread is left with a part of its lanes; they go to the first one.
            for (; inner < end; inner++) {
                part[0] = combine(part[0], candidate(kept_outer, kept_inner, outer, inner PROGRAM_ARGUMENTS));
            }
            for (i32 l = 0; l < LANES; l++) total[l] = combine(total[l], part[l]);
        }
    }
    for (i32 pairs = LANES / 2; pairs > 0; pairs /= 2) {
        for (i32 l = 0; l < pairs; l++) total[l] = combine(total[l], total[l + pairs]);
    }
#if THREADS_X > 1
    LOCAL_ARRAY(Candidate, of_thread, THREADS);
    const i32 thread = (i32)LOCAL_X;
    of_thread[thread] = total[0];
    BARRIER();
    for (i32 pairs = THREADS / 2; pairs > 0; pairs /= 2) {
        if (thread < pairs) of_thread[thread] = combine(of_thread[thread], of_thread[thread + pairs]);
        BARRIER();
    }
    if (thread == 0) STORE_RESULT(segment * KEPT_OUTER * KEPT_INNER + kept, of_thread[0]);
#else
    STORE_RESULT(segment * KEPT_OUTER * KEPT_INNER + kept, total[0]);
#endif
}

#else

// The results of `lanes` kept points from kept_inner on; LANES or 1, so that the loops have a constant length.
FN void reduce_lanes(PARAMETERS, INDEX kept_outer, INDEX kept_inner, INDEX segment, const i32 lanes) {
    const INDEX outer_from = OUTER > 1 ? segment * OUTER_SEGMENT : 0;
    const INDEX outer_end = outer_from + OUTER_SEGMENT < OUTER ? outer_from + OUTER_SEGMENT : OUTER;
    const INDEX inner_from = OUTER > 1 ? 0 : segment * INNER_SEGMENT;
    const INDEX inner_end = inner_from + INNER_SEGMENT < INNER ? inner_from + INNER_SEGMENT : INNER;

    Candidate total[LANES];
    for (i32 l = 0; l < lanes; l++) total[l] = nothing();
    for (INDEX outer = outer_from; outer < outer_end; outer++) {
        for (INDEX from = inner_from; from < inner_end; from += BATCH) {
            Candidate part[LANES];
            for (i32 l = 0; l < lanes; l++) part[l] = nothing();
            const INDEX end = from + BATCH < inner_end ? from + BATCH : inner_end;
            for (INDEX inner = from; inner < end; inner++) {
                for (i32 l = 0; l < lanes; l++) {
                    part[l] = combine(part[l], candidate(kept_outer, kept_inner + l, outer, inner PROGRAM_ARGUMENTS));
                }
            }
            for (i32 l = 0; l < lanes; l++) total[l] = combine(total[l], part[l]);
        }
    }
    const INDEX place = (segment * KEPT_OUTER + kept_outer) * KEPT_INNER + kept_inner;
    for (i32 l = 0; l < lanes; l++) STORE_RESULT(place + l, total[l]);
}

KERNEL(THREADS_X, THREADS_Y) void NAME(PARAMETERS) {
    const INDEX row = GROUP / KEPT_BLOCKS * THREADS_Y + LOCAL_Y;
    const INDEX kept_outer = row % KEPT_OUTER, segment = row / KEPT_OUTER;
    INDEX kept_inner = (GROUP % KEPT_BLOCKS * THREADS_X + LOCAL_X) * LANES;
    if (segment >= SEGMENTS) return;
    if (kept_inner + LANES <= KEPT_INNER) {
        reduce_lanes(ARGUMENTS, kept_outer, kept_inner, segment, LANES);
    } else {
        for (; kept_inner < KEPT_INNER; kept_inner++) reduce_lanes(ARGUMENTS, kept_outer, kept_inner, segment, 1);
    }
}

#endif
