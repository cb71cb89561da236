// The operands of convolutions over any number of axes as products of matrices, for contraction.cl and panels.cl.
//
// Dense layouts: input [batch, in_channels, INPUTS], filter [out_channels, channels of a group, TAPS], output [batch,
// out_channels, OUTPUTS]; the capital letters are products of spatial extents. The product's batch is the group.
//
//           rows          columns              k_outer      k_inner   lhs      rhs
//   OUTPUT  out channels  (image, output)      in channel   tap       filter   input
//   INPUT   in channels   (image, input)       out channel  tap       filter   output gradient
//   FILTER  out channels  (in channel, tap)    image        output    output gradient   input
//
// Defined: GROUP_IN and GROUP_OUT, channels of a group; GROUPS; LOAD_FILTER, LOAD_INPUT, LOAD_OUTPUT. Stands behind
// places.cl.

#define BASES

#ifdef LOAD_FILTER
#define FILTER_AT(out_channel, in_channel, tap)                                                                       \
    ((ACC)LOAD_FILTER(filter, ((batch * GROUP_OUT + (out_channel)) * GROUP_IN + (in_channel)) * TAPS + (tap)))
#endif

#ifdef LOAD_INPUT
#define INPUT_CHANNEL(image, in_channel) (((image) * (GROUPS * GROUP_IN) + batch * GROUP_IN + (in_channel)) * INPUTS)
FN ACC input_at(const GLOBAL INPUT_T* input, INDEX channel, INDEX window, INDEX tap SIZE_PARAMETERS) {
    const INDEX place = input_place(window, tap SIZE_ARGUMENTS);
    return place < 0 ? (ACC)0 : (ACC)LOAD_INPUT(input, channel + place);
}
#endif

#ifdef LOAD_OUTPUT
#define OUTPUT_CHANNEL(image, out_channel) (((image) * (GROUPS * GROUP_OUT) + batch * GROUP_OUT + (out_channel)) * OUTPUTS)
FN ACC output_at(const GLOBAL OUTPUT_T* output, INDEX channel, INDEX place, INDEX tap SIZE_PARAMETERS) {
    const INDEX window = output_place(place, tap SIZE_ARGUMENTS);
    return window < 0 ? (ACC)0 : (ACC)LOAD_OUTPUT(output, channel + window);
}
#endif

#if defined(FOR_OUTPUT)
#define LHS(row, k_outer, k_inner) FILTER_AT(row, k_outer, k_inner)
#define RHS(k_outer, k_inner, column) \
    input_at(input, INPUT_CHANNEL((column) / OUTPUTS, k_outer), (column) % OUTPUTS, k_inner SIZE_ARGUMENTS)
#define OUT_PLACE(batch, row, column)                                                                              \
    ((((column) / OUTPUTS) * (GROUPS * GROUP_OUT) + (batch) * GROUP_OUT + (row)) * OUTPUTS + (column) % OUTPUTS)
#elif defined(FOR_INPUT)
#define LHS(row, k_outer, k_inner) FILTER_AT(k_outer, row, k_inner)
#define RHS(k_outer, k_inner, column) \
    output_at(output, OUTPUT_CHANNEL((column) / INPUTS, k_outer), (column) % INPUTS, k_inner SIZE_ARGUMENTS)
#define OUT_PLACE(batch, row, column)                                                                              \
    ((((column) / INPUTS) * (GROUPS * GROUP_IN) + (batch) * GROUP_IN + (row)) * INPUTS + (column) % INPUTS)
#else
#define LHS(row, k_outer, k_inner) ((ACC)LOAD_OUTPUT(output, OUTPUT_CHANNEL(k_outer, row) + (k_inner)))
#define RHS(k_outer, k_inner, column) \
    input_at(input, INPUT_CHANNEL(k_outer, (column) / TAPS), k_inner, (column) % TAPS SIZE_ARGUMENTS)
#define OUT_PLACE(batch, row, column) (((batch) * M + (row)) * N + (column))
#endif
