/* recompute: auto (docs/scaling.md): the least recomputation that fits into a rank's memory.
 * The blocks go from RECOMPUTE_ALL to RECOMPUTE_NONE one policy at a time, blocks of full attention
 * first, since they recompute most; a level counts these steps: from 0, all of everything, up to
 * fit_levels. */
#ifndef TRAIN_FIT_H
#define TRAIN_FIT_H
#include "train/dryrun.h"
int fit_levels(const struct model_config *m);
void fit_policies(const struct model_config *m, int level, enum recompute policy[MAX_BLOCKS]);
void fit_take(struct dryrun_in *in, int level); /* the policies of a level */
/* The highest level whose dry run needs at most `bytes`; stops with RC_CONFIG and what is missing
 * when there is none. out: a dry run on the way. */
int fit_level(const struct dryrun_in *in, size_t bytes, struct dryrun_out *out);
size_t fit_host_bytes(void); /* free memory of this host; 0: the system does not say */
/* "8 blocks: all recomputed, 32 blocks: attention kept", for a log line */
void fit_describe(const struct model_config *m, const enum recompute *policy, char *out,
                  size_t size);
#endif
