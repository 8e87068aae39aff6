/* What inspect and diff do, apart from the command line: they stream every tensor of a checkpoint
 * once, in pieces, so that the memory they need does not depend on the model. */
#ifndef TRAIN_INSPECT_H
#define TRAIN_INSPECT_H
#include <stdio.h>

#include "parallel/checkpoint.h"

enum { SCAN_ELEMENTS = 1 << 20 }; /* read at once */

struct tensor_scan {
    struct ckpt_tensor t;
    double l2, max, mean; /* of the finite elements; max of |x| */
    int64_t not_finite;
    uint32_t crc; /* CRC-32C of the values as one flat array: the same for every layout of ranks */
};
/* All tensors, sorted by kind and name. malloc'ed. */
struct tensor_scan *scan_checkpoint(struct ckpt *c, int *n);
/* SHA-256 over one line "name shape dtype crc" per tensor of this kind, sorted by name. Two
 * checkpoints with the same hash hold the same weights, whoever wrote them. */
void scan_hash(const struct tensor_scan *s, int n, enum state_kind kind, char hex[65]);
/* "16x4x3" */
void shape_string(char *out, size_t size, const struct ckpt_tensor *t);

struct inspect_opts {
    bool verify, json, config;
};
int inspect_checkpoint(const char *path, struct inspect_opts o, FILE *out); /* exit code */
/* 0: every tensor is the same; 1: some differ or are in one only. */
int diff_checkpoints(const char *a, const char *b, bool json, FILE *out);
#endif
