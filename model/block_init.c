/* The parameters of a block: official names, shapes, how they start. */
#include <math.h>
#include <stdio.h>

#include "model/block.h"
#include "model/params.h"

static struct linear linear_of(struct param *w, struct param *b, int parts)
{
    return (struct linear){.w = w, .b = b, .parts = parts};
}

static void init_self(struct block *b, struct unit *u, const char *p, int64_t C)
{
    struct param *w = param_add_weight(u, p, "self_attn.q", C, C, 0);
    param_add_weight(u, p, "self_attn.k", C, C, 0);
    param_add_weight(u, p, "self_attn.v", C, C, 0);
    struct param *bias = param_add_bias(u, p, "self_attn.q", C);
    param_add_bias(u, p, "self_attn.k", C);
    param_add_bias(u, p, "self_attn.v", C);
    b->qkv = linear_of(w, bias, 3);
    w = param_add_weight(u, p, "self_attn.o", C, C, 0);
    b->o = linear_of(w, param_add_bias(u, p, "self_attn.o", C), 1);
}

static void init_cross(struct block *b, struct unit *u, const char *p, int64_t C)
{
    struct param *w = param_add_weight(u, p, "cross_attn.q", C, C, 0);
    b->cross_q = linear_of(w, param_add_bias(u, p, "cross_attn.q", C), 1);
    w = param_add_weight(u, p, "cross_attn.k", C, C, 0);
    param_add_weight(u, p, "cross_attn.v", C, C, 0);
    struct param *bias = param_add_bias(u, p, "cross_attn.k", C);
    param_add_bias(u, p, "cross_attn.v", C);
    b->cross_kv = linear_of(w, bias, 2);
    w = param_add_weight(u, p, "cross_attn.o", C, C, 0);
    b->cross_o = linear_of(w, param_add_bias(u, p, "cross_attn.o", C), 1);
}

static struct param *add_norm(struct unit *u, const char *p, const char *name, enum init_kind init,
                              int64_t C)
{
    return param_add(u, p, name, P_FULL_PRECISION, init, 0, 1, DIMS(C));
}

void block_init(struct block *b, struct unit *u, int unit, const struct model_config *m, int i)
{
    const int64_t C = m->dim, F = m->ffn_dim;
    char p[32];
    snprintf(p, sizeof p, "blocks.%d.", i);
    *b = (struct block){
        .unit = unit, .dim = (int)C, .ffn_dim = (int)F, .heads = (int)m->num_heads, .eps = m->eps};
    init_self(b, u, p, C);
    init_cross(b, u, p, C);
    struct param *w = param_add_weight(u, p, "ffn.0", F, C, 0);
    b->ffn_in = linear_of(w, param_add_bias(u, p, "ffn.0", F), 1);
    w = param_add_weight(u, p, "ffn.2", C, F, 0);
    b->ffn_out = linear_of(w, param_add_bias(u, p, "ffn.2", C), 1);
    b->modulation = param_add(u, p, "modulation", P_FULL_PRECISION, INIT_NORMAL,
                              1 / sqrt((double)C), 3, DIMS(1, 6, C));
    b->norm_q = add_norm(u, p, "self_attn.norm_q.weight", INIT_ONE, C);
    b->norm_k = add_norm(u, p, "self_attn.norm_k.weight", INIT_ONE, C);
    b->cross_norm_q = add_norm(u, p, "cross_attn.norm_q.weight", INIT_ONE, C);
    b->cross_norm_k = add_norm(u, p, "cross_attn.norm_k.weight", INIT_ONE, C);
    b->norm3_w = add_norm(u, p, "norm3.weight", INIT_ONE, C);
    b->norm3_b = add_norm(u, p, "norm3.bias", INIT_ZERO, C);
}
