/* What the forms of `osp convert` share. */
#ifndef TRAIN_CONVERT_H
#define TRAIN_CONVERT_H
/* OUT/checkpoints, malloc'ed; stops with RC_CANTCREAT when it exists. */
char *convert_folder(const char *out);
#endif
