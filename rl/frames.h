/* The frames of a decoded clip that a scorer looks at (docs/spec/rl.md 3.2; the Python side is
 * frame_count and frame_indices of scripts/videoalign_rules.py, with equal results).
 * A codec's decode returns uint8 RGB [3,T,H,W]: float pixels are rounded there, half to even of
 * (v + 1) * 127.5, clamped (docs/spec/rl.md 1.8), and nothing here rounds again. A scorer takes
 * [n,H,W,3]. */
#ifndef RL_FRAMES_H
#define RL_FRAMES_H
#include <stdint.h>
enum { FRAMES_MIN = 4, FRAMES_MAX = 768 }; /* of one clip to look at */
#define FRAMES_FPS 2.0                     /* frames per second to look at */
/* Which of `total` frames at source_fps: total / source_fps * target_fps of them, even, from
 * FRAMES_MIN to FRAMES_MAX and at most total, equally spaced from the first to the last. Returns
 * how many were written to index[max], FRAMES_MAX suffices; 0 for a clip of one frame, which cannot
 * be scored; 2 for one of 2 or 3. */
int frames_pick(int total, double source_fps, double target_fps, int *index, int max);
/* dst [n,H,W,3] = frames index[0..n-1] of src [3,T,H,W]; index NULL: the first n. */
void frames_copy(uint8_t *dst, const uint8_t *src, int64_t t, int64_t h, int64_t w,
                 const int *index, int n);
#endif
