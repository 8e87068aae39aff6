/* What the parts of `osp bench` share. */
#ifndef TRAIN_BENCH_H
#define TRAIN_BENCH_H
#include "core/dev.h"
struct bench {
    char dtype[16], device[16];
    int64_t threads, t, h, w, ratio, dim, ffn, heads, text, runs, ranks;
    const char *out;
};
enum dtype bench_dtype(const struct bench *b);
/* osp bench comm; returns the exit code: RC_SOFTWARE when a count differs from its formula. */
int bench_comm(const struct bench *b, int argc, char **argv);
/* osp bench gpu (train/bench_gpu.h); argv: all words after `osp bench`. */
struct args;
int bench_gpu(const struct args *a, int argc, char **argv);
extern const char bench_gpu_usage[];
#endif
