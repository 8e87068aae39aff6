/* From the model configuration to what each block is, and from a batch shape to the layout every
 * block runs in. Pure decisions, made before anything runs (docs/spec/model.md 2.5, 5.3). */
#ifndef MODEL_PLAN_H
#define MODEL_PLAN_H
#include "core/dev.h"
#include "model/config.h"
#include "parallel/layout.h"
#include "parallel/mesh.h"
#include "parallel/redist.h"
#include "parallel/ulysses.h"

enum block_kind { BLOCK_FULL, BLOCK_TOKEN, BLOCK_GROUP };
enum { MAX_BLOCKS = 128 };
/* kind[num_layers]; e tells which key is wrong. Sparse blocks alternate token, group, token, ...
 * from the start of their run. */
bool plan_blocks(const struct model_config *m, enum block_kind *kind, struct err *e);
/* The ratio that counts: 1 for a full model. */
int plan_ratio(const struct model_config *m);

/* A layout with its device copies and its attention ranges. */
struct stage {
    struct layout *layout;
    struct tensor pos;     /* i16 [rows,3] on the device */
    struct seqs full, sub; /* self attention: per sample; per sub-sequence */
    struct seqs cross;     /* per sample against text_len keys */
    /* padded layouts: rows of real tokens, and the way back (-1: padding); NULL data otherwise */
    struct tensor real, unreal;
    int64_t num_real;
    /* attention over several ranks: all of a sample's (full), those of a sub-sequence; or NULL */
    struct ulysses *full_ranks, *sub_ranks;
    int32_t *owned[8]; /* arrays behind seqs */
};
/* Everything that depends on the batch shape: stage[] and the moves between them. Block i runs in
 * stage at[i] and enters it by enter[i]; at[num_layers] is where the head runs. */
struct shape_plan {
    struct dev *dev;
    int batch, text_len, num_layers;
    struct grid grid;
    enum block_kind kind[MAX_BLOCKS];
    struct stage stage[3];
    int num_stages;
    int at[MAX_BLOCKS + 1];
    struct redist *enter[MAX_BLOCKS + 1]; /* NULL: same stage as before */
    struct redist *moves[9];
    int64_t max_rows;
};
/* t, h, w: token grid. */
struct shape_plan *plan_shape(struct dev *dev, struct mesh *mesh, const struct model_config *m,
                              int batch, int t, int h, int w, int text_len);
void plan_free(struct shape_plan *p);
#endif
