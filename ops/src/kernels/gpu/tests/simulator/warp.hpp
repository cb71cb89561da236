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

#ifdef WARPGROUPS

namespace simulator {

struct Product {
    u64 lhs, rhs;
    bool turns_lhs, turns_rhs;
    f32 (*sum)[4];
    int lines;
    size_t issued;
    f32 (*from_bits)(u16);

    // The element of a matrix at `index` across k. Which chunks are exchanged, the address says.
    static u32 place(u64 matrix, bool is_turned, u32 index, u32 k) {
        const u32 at = (u32)(matrix & 0x3fff) << 4, leading = (u32)(matrix >> 16 & 0x3fff) << 4;
        const u32 stride = (u32)(matrix >> 32 & 0x3fff) << 4;
        const u32 line = is_turned ? index / 64 * leading + index % 64 * 2 + k / 8 * stride + k % 8 * 128
                                   : index / 8 * stride + index % 8 * 128 + k * 2;
        return (at + line) ^ ((at + line) >> 7 & 7) << 4;
    }

    // Every element that this thread's sums take, row by row and column by column.
    template <typename Use> void for_elements(Use use) const {
        const u32 lane = own % 32, warp = own % 128 / 32;
        for (u32 k = 0; k < 16; k++) {
            for (u32 half = 0; half < 2; half++) use(place(lhs, turns_lhs, warp * 16 + lane / 4 + half * 8, k));
            for (u32 i = 0; i < 2 * (u32)lines; i++) use(place(rhs, turns_rhs, i / 2 * 8 + lane % 4 * 2 + i % 2, k));
        }
    }

    void check_issue() const {
        if (lhs >> 62 != 1 || rhs >> 62 != 1) fail("lines of a matrix are exchanged in another way");
        for_elements([](u32 at) {
            read(at / 4 * 4, 4);
            if (!words[at / 4].is_shown) fail("shared memory at %u is multiplied, but was not shown", at);
        });
    }

    // Computes as late as the device may.
    void finish() const {
        std::vector<double> elements;
        for_elements([&](u32 at) {
            const Word& word = words[at / 4];
            if (word.is_under_way || word.written >= (long)issued) {
                fail("shared memory at %u is written while it is multiplied", at);
            }
            u16 bits;
            memcpy(&bits, &shared[at], 2);
            elements.push_back(from_bits(bits));
        });
        const int pitch = 2 + 2 * lines;
        for (int j = 0; j < lines; j++) {
            for (int i = 0; i < 4; i++) {
                double all = 0;
                for (int k = 0; k < 16; k++) all += elements[k * pitch + i / 2] * elements[k * pitch + 2 + j * 2 + i % 2];
                sum[j][i] = (f32)(sum[j][i] + all);
            }
        }
    }
};

struct Products {
    bool are_open = false;
    std::vector<Product> open;
    std::deque<std::vector<Product>> groups;
};
static Products products[1024];

static void multiply_warpgroup(Product product) {
    Warp& warp = Warp::own_warp();
    const u32 given[4] = {(u32)product.lhs, (u32)(product.lhs >> 32), (u32)product.rhs, (u32)(product.rhs >> 32)};
    warp.gather(5, given, 4);
    if (memcmp(warp.words[0], given, sizeof given) != 0) fail("the lanes of a warp multiply different matrices");
    warp.leave();
    if (!products[own].are_open) fail("products begin before they are opened");
    // Writes of the current step of the block would be seen or not.
    product.issued = epoch;
    product.check_issue();
    products[own].open.push_back(product);
}

}  // namespace simulator

FN void show_copies() {
    auto& thread = simulator::threads[simulator::own];
    for (auto [at, bytes] : thread.unshown) {
        simulator::for_words(at, bytes, [](simulator::Word& word, uint32_t) {
            if (word.writer == (long)simulator::own) word.is_shown = true;
        });
    }
    thread.unshown.clear();
}

FN void open_products() { simulator::products[simulator::own].are_open = true; }

FN void close_products() {
    auto& own = simulator::products[simulator::own];
    own.are_open = false;
    own.groups.push_back({});
    own.groups.back().swap(own.open);
}

template <int LEFT> FN void await_products() {
    auto& groups = simulator::products[simulator::own].groups;
    for (; groups.size() > LEFT; groups.pop_front()) {
        for (const auto& product : groups.front()) product.finish();
    }
}

FN u64 describe_matrix(u32 at, u32 panels) {
    if (at % 16 != 0 || panels % 16 != 0) simulator::fail("a matrix at %u, panels of %u bytes", at, panels);
    return (u64)((at & 0x3ffffu) >> 4) | (u64)(panels >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

template <bool TURNS_LHS, bool TURNS_RHS, int LINES>
FN void multiply_warpgroup_f16(f32 (&sum)[LINES][4], u64 lhs, u64 rhs) {
    simulator::multiply_warpgroup(
        {lhs, rhs, TURNS_LHS, TURNS_RHS, sum, LINES, 0, [](u16 bits) -> f32 { return f16_from_bits(bits); }});
}
template <bool TURNS_LHS, bool TURNS_RHS, int LINES>
FN void multiply_warpgroup_bf16(f32 (&sum)[LINES][4], u64 lhs, u64 rhs) {
    simulator::multiply_warpgroup(
        {lhs, rhs, TURNS_LHS, TURNS_RHS, sum, LINES, 0, [](u16 bits) -> f32 { return bf16_from_bits(bits); }});
}

#endif
