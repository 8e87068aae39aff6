/* The emulated cuda device: host memory, and the lanes of a block as fibers that take turns at its
 * barriers. Only the tests link it. */
#include "core/cuda/cuda.h"

#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

#if defined(__SANITIZE_THREAD__)
enum { LANES = 1 }; /* the thread sanitizer does not follow a change of stacks */
#else
enum { LANES = MAX_LANES };
#endif
enum { STACK = 128 << 10 };

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

struct Fibers {
    ucontext_t first[LANES];
    Place home, lane[LANES];
    bool begun[LANES];
    char *stack[LANES];
    bool ended[LANES];
    int now;
    void (*body)(void *arg, Block &b);
    void *arg;
};
thread_local Fibers *fibers;

void lane_main()
{
    Fibers *f = fibers;
    const int lane = f->now;
    Block b = {lane, LANES};
    f->body(f->arg, b);
    f->ended[lane] = true;
    CHANGE(f->lane[lane], f->home); /* for good */
}

/* Runs the lane to its next barrier or its end. */
void turn(Fibers *f, int lane)
{
    f->now = lane;
    if (f->begun[lane]) {
        CHANGE(f->home, f->lane[lane]);
        return;
    }
    f->begun[lane] = true;
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

} // namespace

void Block::sync()
{
    if (LANES == 1) return;
    Fibers *f = fibers;
    CHANGE(f->lane[f->now], f->home);
}

void emulate_block(void (*body)(void *arg, Block &b), void *arg)
{
    if (LANES == 1) {
        Block b = {0, 1};
        body(arg, b);
        return;
    }
    if (!fibers) {
        fibers = (Fibers *)calloc(1, sizeof *fibers);
        CHECK(fibers, "out of memory");
        for (int i = 0; i < LANES; i++) {
            fibers->stack[i] = (char *)malloc(STACK);
            CHECK(fibers->stack[i], "out of memory");
        }
    }
    Fibers *f = fibers;
    f->body = body;
    f->arg = arg;
    for (int i = 0; i < LANES; i++) f->begun[i] = f->ended[i] = false;
    for (int ended = 0; ended == 0;) { /* every turn runs each lane to its next barrier */
        for (int i = 0; i < LANES; i++) {
            turn(f, i);
            ended += f->ended[i];
        }
        CHECK(ended == 0 || ended == LANES, "%d of %d lanes ended before a barrier of the others",
              ended, (int)LANES);
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
void cuda_to_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    cuda_copy(d, dst, src, bytes);
}
void cuda_from_host(struct dev *d, void *dst, const void *src, size_t bytes)
{
    cuda_copy(d, dst, src, bytes);
}
void cuda_sync(struct dev *) {}

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
const struct dev_backend dev_cuda_emulated = {.name = "cuda-emulated",
                                              .ops = ops,
                                              .start = NULL,
                                              .stop = stop,
                                              .describe = NULL,
                                              .queues = NULL};
