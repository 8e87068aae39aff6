/* The kernels for matrix units with the units in plain C: their logic can be tested on any
 * machine. Slow. */
#define VW 4
#include "core/cpu/vec.inc"

static _Thread_local union {
    float f[16][16];
    uint16_t h[16][32];
} mx_reg[8];

#define MX_BEGIN() ((void)0)
#define MX_END() ((void)0)
#define MX_ZERO(n) memset(&mx_reg[n], 0, sizeof mx_reg[n])
#define MX_LOAD(n, p) memcpy(&mx_reg[n], p, sizeof mx_reg[n])
#define MX_STORE(p, n) memcpy(p, &mx_reg[n], sizeof mx_reg[n])
#define MX_DOT(c, a, b) emulated_dot(c, a, b)

static void emulated_dot(int c, int a, int b)
{
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++) {
            const float x0 = bf16_load(mx_reg[a].h[m][2 * k]);
            const float x1 = bf16_load(mx_reg[a].h[m][2 * k + 1]);
            for (int n = 0; n < 16; n++)
                mx_reg[c].f[m][n] += x0 * bf16_load(mx_reg[b].h[k][2 * n]) +
                                     x1 * bf16_load(mx_reg[b].h[k][2 * n + 1]);
        }
}

static ALWAYS_INLINE vf mx_exp2(vf x) { return vexp2(x); }

static ALWAYS_INLINE float vmax_lane(vf v)
{
    float top = v[0];
    for (int i = 1; i < VW; i++) top = v[i] > top ? v[i] : top;
    return top;
}

static ALWAYS_INLINE void round32(uint16_t *out, const vf *v)
{
    for (int i = 0; i < 32; i++) out[i] = bf16_round(v[i / VW][i % VW]);
}

static ALWAYS_INLINE void wide32(vf *v, const uint16_t *p)
{
    for (int i = 0; i < 32; i++) v[i / VW][i % VW] = bf16_load(p[i]);
}

static ALWAYS_INLINE void pair_rows(uint16_t *out, const uint16_t *a, const uint16_t *b)
{
    for (int i = 0; i < 16; i++) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

static void turn_tile(uint16_t *out, const uint16_t *x, int64_t ld)
{
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++) memcpy(out + c * 32 + 2 * r, x + r * ld + 2 * c, 4);
}

#include "core/cpu/attention_tasks.inc"
#include "core/cpu/mx.inc"
#include "core/cpu/mx_attention.inc"
#include "core/cpu/mx_attention_bwd.inc"
#include "core/cpu/mx_gemm.inc"

const struct mx_kernels cpu_mx_emulated = {.name = "emulated tiles",
                                           .attn_fwd = mx_attn_fwd,
                                           .attn_bwd = mx_attn_bwd,
                                           .gemm = mx_gemm,
                                           .gemm_bytes = mx_gemm_bytes,
                                           .attn_bwd_bytes = mx_attn_bwd_bytes};
