// Padding: out[low + i * (interior + 1)] = x[i] on every axis, FILL elsewhere; a thread for each element of out.
//
// Elements are moved as bits. Generated: AXES(AXIS), which expands AXIS(input, output, low, step) for each axis, the
// innermost one first. Defined: POINTS, the elements of out, and FILL. No local memory.

KERNEL(THREADS, 1) void NAME(PARAMETERS) {
    const INDEX point = GROUP * THREADS + LOCAL_X;
    if (point < POINTS) {
        INDEX rest = point, place = 0, stride = 1;
        u8 inside = 1;
#define AXIS(inputs, outputs, low, step)                                                \
        {                                                                               \
            const INDEX from = rest % (outputs) - (low), at = from / (step);            \
            inside = inside && from >= 0 && at * (step) == from && at < (inputs);       \
            place += at * stride;                                                       \
            rest /= (outputs);                                                          \
            stride *= (inputs);                                                         \
        }
        AXES(AXIS)
        out[point] = inside ? x[place] : FILL;
    }
}
