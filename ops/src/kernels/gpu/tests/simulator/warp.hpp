// The functions of warp.cu in C++, by the same descriptions of the PTX ISA.

#define DYNAMIC_SHARED(name) char* const name = simulator::shared.data()

FN u32 shared_address(const void* place) { return (u32)((const char*)place - simulator::shared.data()); }

template <int SIZE> FN void copy_async(u32 to, const u16* from, i32 bytes) {
    if (bytes < 0 || bytes > SIZE) simulator::fail("a copy of %d bytes of %d", bytes, SIZE);
    if (to % SIZE != 0) simulator::fail("a copy of %d bytes to shared memory at %u", SIZE, to);
    if (bytes > 0 && (uintptr_t)from % SIZE != 0) simulator::fail("a copy of %d bytes from where less is aligned", SIZE);
    if (bytes > 0 && !simulator::is_inside(from, bytes)) simulator::fail("a copy from outside of all buffers");
    simulator::begin_write(to, SIZE);
    simulator::threads[simulator::own].open_copies.push_back({to, (const char*)from, bytes, SIZE});
}

FN void close_copies() {
    auto& thread = simulator::threads[simulator::own];
    thread.groups.push_back({});
    thread.groups.back().swap(thread.open_copies);
}

template <int LEFT> FN void await_copies() { simulator::end_copies(LEFT); }

FN void store_chunk(u32 to, const u32 (&words)[4]) {
    if (to % 16 != 0) simulator::fail("16 bytes to shared memory at %u", to);
    simulator::begin_write(to, 16);
    memcpy(&simulator::shared[to], words, 16);
    simulator::end_write(to, 16);
}

namespace simulator {

// What the lanes of a warp tell each other.
struct Warp {
    Barrier barrier;
    int action;
    u32 words[32][6];

    static Warp& own_warp() {
        static Warp warps[32];
        return warps[own / 32];
    }

    // Gathers what all lanes give to an action, which must be the same one.
    void gather(int wanted, const u32* from, int count) {
        const size_t lane = own % 32;
        if (barrier.arrived == 0) action = wanted;
        if (action != wanted) fail("the lanes of a warp do different things");
        for (int i = 0; i < count; i++) words[lane][i] = from[i];
        barrier.wait(32);
    }
    // Nobody changes what others still read.
    void leave() { barrier.wait(32); }
};

static void load(u32 (&to)[4], u32 from, bool is_transposed) {
    Warp& warp = Warp::own_warp();
    if (from % 16 != 0) fail("a row of a matrix at %u of shared memory", from);
    read(from, 16);
    warp.gather(is_transposed ? 1 : 2, &from, 1);
    const size_t lane = own % 32;
    for (size_t matrix = 0; matrix < 4; matrix++) {
        to[matrix] = 0;
        for (size_t half = 0; half < 2; half++) {
            size_t row = lane / 4, column = lane % 4 * 2 + half;
            if (is_transposed) std::swap(row, column);
            u16 element;
            memcpy(&element, &shared[warp.words[matrix * 8 + row][0] + column * 2], 2);
            to[matrix] |= (u32)element << (16 * half);
        }
    }
    warp.leave();
}

template <typename FromBits>
static void multiply(f32 (&sum)[4], const u32 (&lhs)[4], u32 rhs0, u32 rhs1, int action, FromBits from_bits) {
    Warp& warp = Warp::own_warp();
    const u32 given[6] = {lhs[0], lhs[1], lhs[2], lhs[3], rhs0, rhs1};
    warp.gather(action, given, 6);
    const size_t lane = own % 32;
    auto element = [&](size_t lane, size_t word, size_t half) {
        return (double)from_bits((u16)(warp.words[lane][word] >> (16 * half)));
    };
    for (size_t i = 0; i < 4; i++) {
        const size_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double all = 0;
        for (size_t k = 0; k < 16; k++) {
            const double left = element(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2);
            const double right = element(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
            all += left * right;
        }
        sum[i] = (f32)(sum[i] + all);
    }
    warp.leave();
}

}  // namespace simulator

FN void load_matrices(u32 (&to)[4], u32 from) { simulator::load(to, from, false); }
FN void load_matrices_transposed(u32 (&to)[4], u32 from) { simulator::load(to, from, true); }

FN void multiply_f16(f32 (&sum)[4], const u32 (&lhs)[4], u32 rhs0, u32 rhs1) {
    simulator::multiply(sum, lhs, rhs0, rhs1, 3, [](u16 bits) { return f16_from_bits(bits); });
}
FN void multiply_bf16(f32 (&sum)[4], const u32 (&lhs)[4], u32 rhs0, u32 rhs1) {
    simulator::multiply(sum, lhs, rhs0, rhs1, 4, [](u16 bits) { return bf16_from_bits(bits); });
}
