// Where windows lie over the places that they look at, on any number of axes; for convolutions and pooling.
//
// Places, windows and taps are numbered row-major over the spatial axes. Generated: AXES(AXIS), which expands
// AXIS(input, output, kernel, stride, dilation, pad) for each axis, the innermost one first. What these are, if they are
// no numbers, stands in SIZE_PARAMETERS, and in SIZE_ARGUMENTS for calls.

// The element of the input that `tap` of window `output` looks at, or -1 for padding.
FN INDEX input_place(INDEX output, INDEX tap SIZE_PARAMETERS) {
    INDEX place = 0, step = 1;
    u8 inside = 1;
#define AXIS(inputs, outputs, taps, stride, dilation, pad)                                      \
    {                                                                                           \
        const INDEX at = output % (outputs) * (stride) + tap % (taps) * (dilation) - (pad);     \
        inside = inside && at >= 0 && at < (inputs);                                            \
        place += at * step;                                                                     \
        output /= (outputs);                                                                    \
        tap /= (taps);                                                                          \
        step *= (inputs);                                                                       \
    }
    AXES(AXIS)
#undef AXIS
    return inside ? place : -1;
}

// The window whose `tap` looks at element `input` of the input, or -1 if there is none.
FN INDEX output_place(INDEX input, INDEX tap SIZE_PARAMETERS) {
    INDEX place = 0, step = 1;
    u8 inside = 1;
#define AXIS(inputs, outputs, taps, stride, dilation, pad)                                      \
    {                                                                                           \
        const INDEX from = input % (inputs) + (pad) - tap % (taps) * (dilation);                \
        const INDEX at = from / (stride);                                                       \
        inside = inside && from >= 0 && at * (stride) == from && at < (outputs);                \
        place += at * step;                                                                     \
        input /= (inputs);                                                                      \
        tap /= (taps);                                                                          \
        step *= (outputs);                                                                      \
    }
    AXES(AXIS)
#undef AXIS
    return inside ? place : -1;
}
