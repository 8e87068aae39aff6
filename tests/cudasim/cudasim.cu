/* A simulator of blocks of threads: the kernels of the cuda device as host code, on host memory.
 * The lanes of a block are fibers. A fiber runs to its next barrier, of the block (sync) or of its
 * warp (exchange: what shuffles and tensor units are made of). A warp goes on as far as it can
 * before the next one starts, and every other time the last warp is first: a block barrier that is
 * missing between them shows. Shared and scratch memory start with anything. Only the tests link
 * this. */
#include "core/cuda/cuda.h"
extern "C" {
#include "core/cuda/staging.h"
}

#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

#if defined(__SANITIZE_THREAD__)
enum { USUAL = 1 }; /* the thread sanitizer does not follow a change of stacks */
#else
enum { USUAL = MAX_LANES };
#endif
enum { STACK = 128 << 10, MOST = 8 * WARP };

namespace
{

/* A fiber starts with a context; from then on a jump changes stacks, which costs no system call.
 * The address sanitizer knows contexts only. */
#if defined(__SANITIZE_ADDRESS__)
typedef ucontext_t Place;
#define CHANGE(from, to) swapcontext(&(from), &(to))
#else
typedef jmp_buf Place;
#define CHANGE(from, to) (_setjmp(from) == 0 ? _longjmp(to, 1) : (void)0)
#endif

enum State { FRESH, AT_BLOCK, AT_WARP, ENDED };
struct Fibers {
    ucontext_t first[MOST];
    Place home, lane[MOST];
    State state[MOST];
    char *stack[MOST];
    int now, lanes;
    bool backwards;
    uint32_t table[2][MOST][Block::WORDS]; /* what lanes posted; in turn */
    unsigned posted[MOST];
    void (*body)(void *arg, Block &b);
    void *arg;
};
thread_local Fibers *fibers;

void lane_main()
{
    Fibers *f = fibers;
    const int lane = f->now;
    Block b = {lane, f->lanes};
    f->body(f->arg, b);
    f->state[lane] = ENDED;
    CHANGE(f->lane[lane], f->home); /* for good */
}

/* Runs the lane to its next barrier or its end. */
void turn(Fibers *f, int lane)
{
    f->now = lane;
    if (f->state[lane] != FRESH) {
        CHANGE(f->home, f->lane[lane]);
        return;
    }
    if (!f->stack[lane]) {
        f->stack[lane] = (char *)malloc(STACK);
        CHECK(f->stack[lane], "out of memory");
    }
    ucontext_t *c = &f->first[lane];
    getcontext(c);
    c->uc_stack.ss_sp = f->stack[lane];
    c->uc_stack.ss_size = STACK;
    c->uc_link = NULL;
    makecontext(c, lane_main, 0);
#if defined(__SANITIZE_ADDRESS__)
    swapcontext(&f->home, c);
#else
    if (_setjmp(f->home) == 0) setcontext(c);
#endif
}

/* Runs lanes [from, to) to the next barrier of the block, or to their end. */
State run_warp(Fibers *f, int from, int to)
{
    do {
        for (int i = from; i < to; i++) turn(f, i);
        for (int i = from; i < to; i++)
            CHECK(f->state[i] == f->state[from],
                  "lanes %d and %d of a warp are at different barriers, or one has ended", from, i);
    } while (f->state[from] == AT_WARP);
    return f->state[from];
}

void wait(State at)
{
    Fibers *f = fibers;
    f->state[f->now] = at;
    CHANGE(f->lane[f->now], f->home);
}

} // namespace

void Block::sync()
{
    if (lanes > 1) wait(AT_BLOCK);
}

const uint32_t (*Block::exchange(const uint32_t *mine, int n))[Block::WORDS]
{
    Fibers *f = fibers;
    uint32_t(*table)[WORDS] = f->table[f->posted[lane]++ % 2];
    memcpy(table[lane], mine, (size_t)n * sizeof *mine);
    wait(AT_WARP);
    return table + lane / WARP * WARP;
}

void emulate_block(void (*body)(void *arg, Block &b), void *arg, int lanes)
{
    if (!lanes) lanes = USUAL;
    CHECK(lanes <= MOST && (lanes < WARP || lanes % WARP == 0), "a block of %d lanes", lanes);
    if (lanes == 1) {
        Block b = {0, 1};
        body(arg, b);
        return;
    }
    if (!fibers) {
        fibers = (Fibers *)calloc(1, sizeof *fibers);
        CHECK(fibers, "out of memory");
    }
    Fibers *f = fibers;
    f->body = body;
    f->arg = arg;
    f->lanes = lanes;
    for (int i = 0; i < lanes; i++) {
        f->state[i] = FRESH;
        f->posted[i] = 0;
    }
    const int width = lanes < WARP ? lanes : WARP, warps = lanes / width;
    for (int ended = 0; ended == 0;) { /* every turn runs each warp to its next block barrier */
        f->backwards = !f->backwards;
        for (int i = 0; i < warps; i++) {
            const int w = f->backwards ? warps - 1 - i : i;
            ended += run_warp(f, w * width, (w + 1) * width) == ENDED;
        }
        CHECK(ended == 0 || ended == warps, "%d of %d warps ended before a barrier of the others",
              ended, warps);
    }
}

/* ---- memory -------------------------------------------------------------------------------- */

void *cuda_alloc(struct dev *, size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    CHECK(p, "out of memory");
    memset(p, 0x7f, bytes);
    return p;
}
void cuda_free(struct dev *, void *p) { free(p); }
void cuda_copy(struct dev *, void *dst, const void *src, size_t bytes)
{
    if (bytes) memcpy(dst, src, bytes);
}

/* Copies through pinned memory, as a device makes them: at once, or as late as they may be made
 * (emulated_late), when somebody waits for them. Kernels here run at once, so that only a test that
 * runs none may ask for the latter. */
extern "C" bool emulated_late;
bool emulated_late;
extern "C" const size_t emulated_stage;
enum : size_t { STAGE = 1 << 10 };
const size_t emulated_stage = STAGE;

namespace
{
struct Pending {
    void *dst;
    const void *src;
    size_t bytes;
    int mark; /* or -1: a copy */
};
enum { QUEUE = 64 };
struct Copies {
    struct staging staging = {STAGE, {}, {}, 0};
    Pending queue[QUEUE];
    int n;
};
thread_local Copies copies;

/* Everything up to the last time `mark` was set; -1: everything. */
void run_copies(int mark)
{
    int end = copies.n;
    while (mark >= 0 && end > 0 && copies.queue[end - 1].mark != mark) end--;
    for (int i = 0; i < end; i++)
        if (copies.queue[i].mark < 0)
            memcpy(copies.queue[i].dst, copies.queue[i].src, copies.queue[i].bytes);
    memmove(copies.queue, copies.queue + end, (size_t)(copies.n - end) * sizeof *copies.queue);
    copies.n -= end;
}

void queue_copy(Pending p)
{
    CHECK(copies.n < QUEUE, "too many copies wait");
    copies.queue[copies.n++] = p;
    if (!emulated_late) run_copies(-1);
}
} // namespace

char *cuda_pinned(struct dev *, size_t bytes)
{
    static thread_local char pinned[2][STAGE];
    static thread_local int used;
    CHECK(bytes == STAGE && used < 2, "pinned memory beyond two buffers");
    return pinned[used++];
}
void cuda_copy_async(struct dev *, void *dst, const void *src, size_t bytes, bool)
{
    CHECK(bytes > 0, "an empty copy");
    queue_copy(Pending{dst, src, bytes, -1});
}
void cuda_mark(struct dev *, int which) { queue_copy(Pending{NULL, NULL, 0, which}); }
void cuda_wait_mark(struct dev *, int which) { run_copies(which); }

void cuda_to_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    staged_to_host(d, &copies.staging, dst, src, bytes);
    cuda_sync(d);
}
void cuda_from_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    staged_from_host(d, &copies.staging, dst, src, bytes);
}
void cuda_sync(struct dev *) { run_copies(-1); }

/* A new block each time: a use of the scratch of an earlier op is one of freed memory. */
void *cuda_scratch(struct dev *d, size_t bytes)
{
    free(d->impl);
    return d->impl = cuda_alloc(d, bytes);
}

/* A test puts its stand-in here. */
extern "C" struct cudnn *emulated_cudnn;
struct cudnn *emulated_cudnn;
struct cudnn *cuda_sdpa(struct dev *) { return emulated_cudnn; }
void *cuda_queue(struct dev *) { return NULL; }

extern "C" bool (*emulated_gemm)(const struct gemm_args *g);
bool (*emulated_gemm)(const struct gemm_args *g);
bool cuda_library_gemm(struct dev *, const struct gemm_args *g)
{
    return emulated_gemm && emulated_gemm(g);
}

static const struct dev_ops *ops(enum dtype compute)
{
    return compute == DT_F32 || compute == DT_BF16 ? &cuda_ops : NULL;
}
static void stop(struct dev *d) { free(d->impl); }

extern "C" const struct dev_backend dev_cuda_emulated;
/* no queues of its own, one unit, the memory of the host */
const struct dev_backend dev_cuda_emulated = {
    "cuda-emulated", ops, NULL, stop, NULL, NULL, NULL, NULL, NULL, NULL};
