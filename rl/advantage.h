/* From the scores of an epoch to advantages (docs/spec/rl.md 1.10, 1.11, 6.8). A pure function of a
 * table that all ranks hold, so that all decide alike; the order of its rows changes no bit of a
 * member's advantage.
 * A member without a finite score of sane size (1e100) is taken as not valid. Where all values of a
 * group are equal up to the rounding of their sum, there is no advantage. No NaN comes out but in
 * reward. */
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
    int scale, aggregate; /* enums above */
    int64_t ddof;         /* of the standard deviation: 0 or 1 */
    double eps;           /* added to it */
    double clip_max;      /* |A| at most */
    int64_t min_group;    /* fewer valid members: the group counts nothing; 0: max(2, G - 1), G its
                           * members, of the largest one where groups are merged */
    bool merge_same_prompt; /* groups of one prompt are one group */
    int64_t best_of;        /* n, even: only the n/2 best and the n/2 worst of a group count, of
                             * equal ones by their order in the table; 0: all */
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
    double advantage; /* 0 when it counts nothing: not valid, group dropped, not among best_of */
    double weight;    /* 1; 0 where the advantage is 0: left out of the policy term */
    bool dropped;     /* its group is below min_group */
};
struct adv_stats {                     /* over valid members */
    int64_t members, valid, effective; /* effective: weight 1 */
    int64_t groups;                    /* after merging */
    int64_t zero_std_groups;           /* all values equal, and not dropped */
    int64_t dropped_groups;            /* below min_group */
    double mean, std, min, max;        /* of the reward; std with ddof 0 */
    double std_within, std_between;    /* root mean variance inside groups; std of the group means;
                                        * without dropped groups */
    double dim_mean[ADV_DIMS], dim_std[ADV_DIMS];
    double adv_abs_mean, adv_max;
};
/* Stops on a configuration that makes no sense. out [n]; stats may be NULL; all 0 where no member
 * is valid. */
void advantages(const struct adv_config *c, const struct adv_member *m, int64_t n,
                struct adv_out *out, struct adv_stats *stats);
#endif
