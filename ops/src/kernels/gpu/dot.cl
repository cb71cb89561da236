// The operands of a batched matrix product, for contraction.cl and panels.cl: strided matrices.
//
// Defined: LHS_ROW, LHS_COLUMN, RHS_ROW, RHS_COLUMN, strides in elements; LHS_LOAD and RHS_LOAD. BASES defines lhs_base
// and rhs_base, where the matrices of `batch` begin. Out is dense, [batch, m, n].

#define LHS(row, k_outer, k_inner) ((ACC)LHS_LOAD(lhs, lhs_base + (row) * LHS_ROW + (k_inner) * LHS_COLUMN))
#define RHS(k_outer, k_inner, column) ((ACC)RHS_LOAD(rhs, rhs_base + (k_inner) * RHS_ROW + (column) * RHS_COLUMN))
#define OUT_PLACE(batch, row, column) (((batch) * M + (row)) * N + (column))
