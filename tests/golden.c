#include "tests/golden.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check.h"

int golden_variants(struct variant *v, int max)
{
    const struct variant all[] = {{"ref", DT_F64, PAD_NONE},
                                  {"ref", DT_F64, PAD_REF},
                                  {"ref", DT_F32, PAD_NONE},
                                  {"cpu", DT_F32, PAD_NONE},
                                  {"cpu", DT_F32, PAD_REF},
                                  {"cpu", DT_BF16, PAD_NONE},
                                  {"cuda", DT_F32, PAD_NONE},
                                  {"cuda", DT_BF16, PAD_NONE}};
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all && n < max; i++)
        if (dev_supports(all[i].device, all[i].compute)) v[n++] = all[i];
    return n;
}

struct model_config golden_model(long long f)
{
    char type[32];
    h5_attr_text(f, "/", "model_type", type, sizeof type);
    const bool full = strcmp(type, "full") == 0;
    return (struct model_config){.dim = (int64_t)h5_attr(f, "/", "dim"),
                                 .ffn_dim = (int64_t)h5_attr(f, "/", "ffn"),
                                 .freq_dim = (int64_t)h5_attr(f, "/", "freq_dim"),
                                 .in_dim = (int64_t)h5_attr(f, "/", "in_dim"),
                                 .out_dim = (int64_t)h5_attr(f, "/", "out_dim"),
                                 .num_heads = (int64_t)h5_attr(f, "/", "heads"),
                                 .num_layers = (int64_t)h5_attr(f, "/", "layers"),
                                 .text_len = (int64_t)h5_attr(f, "/", "text_len"),
                                 .text_dim = (int64_t)h5_attr(f, "/", "text_dim"),
                                 .eps = h5_attr(f, "/", "eps"),
                                 .qk_norm = true,
                                 .cross_attn_norm = true,
                                 .skiparse_model_type = full ? SKIPARSE_FULL : SKIPARSE_DUAL_END,
                                 .sparse_ratio = (int64_t)h5_attr(f, "/", "P"),
                                 .num_full_blocks = (int64_t)h5_attr(f, "/", "nf"),
                                 .skiparse_dim = 1,
                                 .skiparse_strict = true};
}

int64_t golden_place(int kind, int P, int T, int H, int W, int B, int b, int t, int r, int c)
{
    if (kind == 0) return (((int64_t)b * T + t) * H + r) * W + c;
    const int PP = P * P, hp = (H + PP - 1) / PP * PP / P, wp = (W + PP - 1) / PP * PP / P;
    int s, y, x;
    if (kind == 1) {
        s = r % P * P + c % P;
        y = r / P;
        x = c / P;
    } else {
        s = r / P % P * P + c / P % P;
        y = r / PP * P + r % P;
        x = c / PP * P + c % P;
    }
    const int64_t n = (int64_t)T * hp * wp;
    return ((int64_t)s * B + b) * n + ((int64_t)t * hp + y) * wp + x;
}

double relative_l2(const double *got, const double *want, int64_t n)
{
    double d = 0, w = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) return INFINITY;
        d += (got[i] - want[i]) * (got[i] - want[i]);
        w += want[i] * want[i];
    }
    return d == 0 ? 0 : sqrt(d / w);
}

void golden_compare(const struct variant *v, const char *what, const double *got, const double *want,
                    int64_t n, bool stored_f64, struct bound b)
{
    if (v->compute == DT_BF16) {
        if (b.l2_bf16 == 0) return;
        const double e = relative_l2(got, want, n);
        EXPECT(e <= b.l2_bf16, "%s: L2 error %.3g > %.3g", what, e, b.l2_bf16);
        return;
    }
    double tol = v->compute == DT_F64 ? b.tol64 : b.tol32;
    if (v->compute == DT_F64 && !stored_f64 && tol < 2e-7) tol = 2e-7;
    expect_close(what, got, want, n, tol);
}

void golden_label(char *out, int size, const struct variant *v, const char *file, const char *group)
{
    snprintf(out, (size_t)size, "%s %s on %s %s%s", file, group, v->device, dtype_name(v->compute),
             v->pad_mode == PAD_REF ? " (padded layout)" : "");
}
