// A CUDA device for tests, as far as the kernels of this folder need one: their text is compiled as C++ behind this header,
// and the threads of a workgroup take turns on one thread of the host, each on a stack of its own.
//
// A thread runs until it waits: at a barrier, or where a warp acts as one. So results depend on nothing but the text. Shared
// memory that the launch sizes is watched: every word knows who read and wrote it since which barrier, and what two threads
// would race for ends the run with a message, as do words that nobody wrote, places out of bounds, and threads that wait
// for ever. Behind every buffer lies a page that may not be touched.

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <deque>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static
// Instructions are given as functions below and in warp.hpp.
#define asm(...)

struct Index {
    unsigned int x, y, z;
};
static Index threadIdx, blockIdx;

using std::fabs;

static inline float __uint_as_float(unsigned int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline unsigned int __float_as_uint(float x) {
    unsigned int bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
static inline double __longlong_as_double(long long bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }

namespace simulator {

[[noreturn]] static void fail(const char* format, ...) {
    fprintf(stderr, "block %u, %u, thread %u, %u: ", blockIdx.x, blockIdx.y, threadIdx.x, threadIdx.y);
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    _exit(1);
}

// ---- threads ----

struct Copy {
    uint32_t to;
    const char* from;
    int bytes, size;
};

struct Thread {
    ucontext_t start;
    jmp_buf at;
    bool is_begun, is_done;
    Index index;
    std::vector<Copy> open_copies;
    std::deque<std::vector<Copy>> groups;
    // What it wrote to shared memory and has not shown to units of their own yet: places and bytes.
    std::vector<std::pair<uint32_t, int>> unshown;
};

static std::vector<Thread> threads;
static std::vector<std::vector<char>> stacks;
static size_t own, turns_without_progress;
static bool goes_backwards;
static jmp_buf host;
static void (*body)();

static void enter(size_t next) {
    own = next;
    Thread& thread = threads[next];
    threadIdx = thread.index;
    if (thread.is_begun) _longjmp(thread.at, 1);
    thread.is_begun = true;
    setcontext(&thread.start);
    fail("setcontext failed");
}

// The next thread that has not ended, or the host.
[[noreturn]] static void pass_on() {
    const size_t count = threads.size();
    for (size_t i = 1; i <= count; i++) {
        const size_t next = (goes_backwards ? own + count - i : own + i) % count;
        if (!threads[next].is_done) enter(next);
    }
    _longjmp(host, 1);
}

static void give_way() {
    if (++turns_without_progress > 2 * threads.size()) fail("all threads wait for one another");
    if (_setjmp(threads[own].at) == 0) pass_on();
}

static void run_thread() {
    body();
    Thread& thread = threads[own];
    for (auto& group : thread.groups) {
        if (!group.empty()) fail("the thread ends before its copies are there");
    }
    if (!thread.open_copies.empty()) fail("the thread ends with copies of no group");
    thread.is_done = true;
    turns_without_progress = 0;
    pass_on();
}

struct Barrier {
    size_t arrived = 0, passed = 0;

    // Whether this is the last thread to arrive.
    bool wait(size_t count) {
        const size_t round = passed;
        if (++arrived == count) {
            arrived = 0;
            passed++;
            turns_without_progress = 0;
            return true;
        }
        while (passed == round) give_way();
        return false;
    }
};

static Barrier block_barrier;
// Barriers that the block has passed.
static size_t epoch;

// ---- shared memory ----

struct Word {
    // The last one to write, and when; -1 for nobody.
    long writer = -1, written = -1;
    // A thread that read since the barrier before, -2 for several.
    long reader = -1, read = -1;
    bool is_under_way = false, is_shown = false;
};

static std::vector<char> shared;
static std::vector<Word> words;

template <typename Check> static void for_words(uint32_t at, int bytes, Check check) {
    if (at % 4 != 0 || at + bytes > shared.size()) fail("%d bytes at %u of %zu of shared memory", bytes, at, shared.size());
    for (uint32_t word = at / 4; word < (at + bytes) / 4; word++) check(words[word], word * 4);
}

static void begin_write(uint32_t at, int bytes) {
    for_words(at, bytes, [](Word& word, uint32_t place) {
        const long now = (long)epoch, me = (long)own;
        if (word.is_under_way) fail("shared memory at %u is written while a copy to it is under way", place);
        if (word.read == now && word.reader != me) fail("shared memory at %u is written while another thread reads", place);
        if (word.written == now && word.writer != me) fail("shared memory at %u is written by two threads", place);
        word.is_under_way = true;
    });
}

static void end_write(uint32_t at, int bytes) {
    for_words(at, bytes, [](Word& word, uint32_t) {
        word.writer = (long)own;
        word.written = (long)epoch;
        word.is_under_way = word.is_shown = false;
    });
    threads[own].unshown.push_back({at, bytes});
}

static void read(uint32_t at, int bytes) {
    for_words(at, bytes, [](Word& word, uint32_t place) {
        const long now = (long)epoch, me = (long)own;
        if (word.is_under_way) fail("shared memory at %u is read while a copy to it is under way", place);
        if (word.written < 0) fail("shared memory at %u is read, but nobody wrote it", place);
        if (word.written == now && word.writer != me) fail("shared memory at %u is read while another thread writes", place);
        word.reader = word.read == now && word.reader != me ? -2 : me;
        word.read = now;
    });
}

static void end_copies(size_t left) {
    auto& groups = threads[own].groups;
    for (; groups.size() > left; groups.pop_front()) {
        for (const Copy& copy : groups.front()) {
            memset(&shared[copy.to], 0, copy.size);
            memcpy(&shared[copy.to], copy.from, copy.bytes);
            end_write(copy.to, copy.size);
        }
    }
}

// ---- global memory and launches ----

struct Buffer {
    char* bytes;
    uint64_t len;
};

static std::vector<Buffer> buffers;

static bool is_inside(const void* from, int bytes) {
    for (const Buffer& buffer : buffers) {
        const char* at = (const char*)from;
        if (at >= buffer.bytes && at + bytes <= buffer.bytes + buffer.len) return true;
    }
    return false;
}

static Buffer guarded(uint64_t len) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), pages = (len + page - 1) / page + 1;
    char* all = (char*)mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + (pages - 1) * page, page, PROT_NONE) != 0) fail("no memory");
    // As close to the page as an aligned beginning allows.
    return {all + (pages - 1) * page - (len + 15) / 16 * 16, len};
}

struct Argument {
    uint64_t is_scalar, value, offset;
};

static std::vector<Argument> arguments;

template <typename T> static T argument(size_t index) {
    const Argument& argument = arguments[index];
    T value;
    if (!argument.is_scalar) {
        char* place = buffers[argument.value].bytes + argument.offset;
        memcpy(&value, &place, sizeof value);
    } else {
        memcpy(&value, &argument.value, sizeof value);
    }
    return value;
}

template <typename... P, size_t... I> static void call(void (*kernel)(P...), std::index_sequence<I...>) {
    if (arguments.size() != sizeof...(P)) fail("%zu arguments for %zu parameters", arguments.size(), sizeof...(P));
    kernel(argument<P>(I)...);
}

static void run_block(Index block_size) {
    const size_t count = block_size.x * block_size.y;
    words.assign(shared.size() / 4, Word());
    block_barrier = Barrier();
    epoch = turns_without_progress = 0;
    threads.resize(count);
    stacks.resize(count);
    for (size_t i = 0; i < count; i++) {
        Thread& thread = threads[i];
        stacks[i].resize(128 << 10);
        getcontext(&thread.start);
        thread.start.uc_stack.ss_sp = stacks[i].data();
        thread.start.uc_stack.ss_size = stacks[i].size();
        thread.start.uc_link = nullptr;
        makecontext(&thread.start, run_thread, 0);
        thread.is_begun = thread.is_done = false;
        thread.index = {(unsigned)(i % block_size.x), (unsigned)(i / block_size.x), 0};
        thread.groups.clear();
        thread.unshown.clear();
    }
    if (_setjmp(host) == 0) enter(goes_backwards ? count - 1 : 0);
    goes_backwards = !goes_backwards;
}

static uint64_t number(FILE* file) {
    uint64_t value;
    if (fread(&value, sizeof value, 1, file) != 1) fail("the case is too short");
    return value;
}

// Reads a launch from a file of 64-bit numbers and buffers, runs it, and writes all buffers to another file.
template <typename Kernel> static int run(Kernel kernel, void (*of_thread)(), Index block_size, char** argv) {
    FILE* in = fopen(argv[1], "rb");
    if (in == nullptr) fail("no case");
    const uint64_t grid_x = number(in), grid_y = number(in);
    shared.assign(number(in), 0);
    for (uint64_t left = number(in); left > 0; left--) {
        buffers.push_back(guarded(number(in)));
        Buffer& last = buffers.back();
        if (fread(last.bytes, 1, last.len, in) != last.len) fail("the case is too short");
    }
    for (uint64_t left = number(in); left > 0; left--) {
        const uint64_t is_scalar = number(in), value = number(in);
        arguments.push_back({is_scalar, value, number(in)});
    }
    body = of_thread;
    for (blockIdx.y = 0; blockIdx.y < grid_y; blockIdx.y++) {
        for (blockIdx.x = 0; blockIdx.x < grid_x; blockIdx.x++) run_block(block_size);
    }
    FILE* out = fopen(argv[2], "wb");
    for (const Buffer& buffer : buffers) {
        if (out == nullptr || fwrite(buffer.bytes, 1, buffer.len, out) != buffer.len) fail("no result");
    }
    fclose(out);
    return 0;
}

template <typename... P> static std::index_sequence_for<P...> parameters(void (*)(P...)) { return {}; }

}  // namespace simulator

static void __syncthreads() {
    if (simulator::block_barrier.wait(simulator::threads.size())) simulator::epoch++;
}

#define SIMULATOR_MAIN                                                                                     \
    static void run_kernel() { simulator::call(NAME, decltype(simulator::parameters(NAME))()); }            \
    int main(int, char** argv) { return simulator::run(NAME, run_kernel, {THREADS_X, THREADS_Y, 1}, argv); }
