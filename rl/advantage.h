/* From the scores of an epoch to advantages (docs/spec/rl.md 1.10, 1.11, 6.8). A pure function of a
 * table that all ranks hold in the same order, so that all decide alike. */
#ifndef RL_ADVANTAGE_H
#define RL_ADVANTAGE_H
#include <stdbool.h>
#include <stdint.h>
enum { ADV_DIMS = 8 };
enum adv_scale { ADV_GROUP_STD, ADV_GLOBAL_STD, ADV_NO_STD };
enum adv_aggregate {
    ADV_OF_REWARD,    /* the advantage of the weighted sum of scores */
    ADV_OF_ADVANTAGES /* weighted sum of the advantages of each score; weights sum to 1 */
};
struct adv_config {
    int dims;
    double weight[ADV_DIMS];
    int scale, aggregate;   /* enums above */
    int64_t ddof;           /* of the standard deviation: 0 or 1 */
    double eps;             /* added to it */
    double clip_max;        /* |A| at most */
    int64_t min_group;      /* fewer valid members: the group counts nothing */
    bool merge_same_prompt; /* groups of one prompt are one group */
    int64_t best_of;        /* n: only the n/2 best and the n/2 worst of a group count; 0: all */
    bool whole_epoch;       /* one group of all (per_prompt_stat_tracking: false) */
};
struct adv_member {
    int64_t group;  /* equal: members of one group; any order in the table */
    int64_t prompt; /* equal: same prompt */
    bool valid;
    double score[ADV_DIMS]; /* normalised; read when valid */
};
struct adv_out {
    double reward;    /* weighted sum of the scores; NaN when not valid */
    double advantage; /* 0 when it counts nothing */
    double weight;    /* 1, or 0: left out of the policy term */
};
struct adv_stats {                     /* over valid members */
    int64_t members, valid, effective; /* effective: weight 1 and advantage not 0 */
    int64_t groups, zero_std_groups, dropped_groups;
    double mean, std, min, max;     /* of the reward; std with ddof 0 */
    double std_within, std_between; /* root mean variance inside groups; std of the group means */
    double dim_mean[ADV_DIMS], dim_std[ADV_DIMS];
    double adv_abs_mean, adv_max;
};
/* Stops on a configuration that makes no sense; out [n]. The sums are taken in the order of the
 * table within each group. */
void advantages(const struct adv_config *c, const struct adv_member *m, int64_t n,
                struct adv_out *out, struct adv_stats *stats);
#endif
