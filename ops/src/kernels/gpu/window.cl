// Sliding windows over the last axes of a dense tensor [OUTER, INPUTS]; one value of [OUTER, OUTPUTS] belongs to each.
//
// MAX, SUM: a thread for each window. GATHER_AT_MAX: too, it takes an element of `source` at the place of the first
// largest of x. SCATTER_TO_MAX, SPREAD: a thread for each element, which collects from the windows that look at it, so
// that nothing is written twice and sums have one order. No local memory. Stands behind places.cl, which TAPS, INPUTS
// and OUTPUTS count; defined: X_LOAD, VALUES_LOAD, OUT_STORE, ELEMENT (an element's type in registers) and ACC.

// The place of the first largest element of a window; a NaN is larger than any number. No window is all padding.
#ifdef X_LOAD
FN INDEX first_largest(const GLOBAL X_T* x, INDEX window SIZE_PARAMETERS) {
    INDEX best = -1;
    ELEMENT largest = 0;
    for (INDEX tap = 0; tap < TAPS; tap++) {
        const INDEX place = input_place(window, tap SIZE_ARGUMENTS);
        if (place >= 0) {
            const ELEMENT value = X_LOAD(x, place);
            if (best < 0 || value > largest || (value != value && largest == largest)) {
                best = place;
                largest = value;
            }
        }
    }
    return best;
}
#endif

KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX point = GROUP * THREADS + LOCAL_X;
#if defined(SCATTER_TO_MAX) || defined(SPREAD)
    if (point < OUTER * INPUTS) {
        const INDEX outer = point / INPUTS, element = point % INPUTS;
        ACC sum = 0;
        // The last tap looks from the first window, so windows are added in their order.
        for (INDEX tap = TAPS - 1; tap >= 0; tap--) {
            const INDEX window = output_place(element, tap SIZE_ARGUMENTS);
            if (window >= 0) {
#ifdef SCATTER_TO_MAX
                if (first_largest(x + outer * INPUTS, window SIZE_ARGUMENTS) == element)
#endif
                    sum += (ACC)VALUES_LOAD(values, outer * OUTPUTS + window);
            }
        }
        OUT_STORE(out, point, (ELEMENT)sum);
    }
#else
    if (point < OUTER * OUTPUTS) {
        const INDEX outer = point / OUTPUTS, window = point % OUTPUTS;
#if defined(SUM)
        ACC sum = 0;
        for (INDEX tap = 0; tap < TAPS; tap++) {
            const INDEX place = input_place(window, tap SIZE_ARGUMENTS);
            if (place >= 0) sum += (ACC)X_LOAD(x, outer * INPUTS + place);
        }
        OUT_STORE(out, point, (ELEMENT)sum);
#else
        const INDEX place = outer * INPUTS + first_largest(x + outer * INPUTS, window SIZE_ARGUMENTS);
#if defined(MAX)
        OUT_STORE(out, point, X_LOAD(x, place));
#else
        OUT_STORE(out, point, VALUES_LOAD(values, place));
#endif
#endif
    }
#endif
}
