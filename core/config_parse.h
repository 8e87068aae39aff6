/* Inside of core/config: from one node to one member. */
#ifndef CORE_CONFIG_PARSE_H
#define CORE_CONFIG_PARSE_H
#include "core/config.h"
#include "core/yaml_tree.h"

enum { CFG_REASON_MAX = 480 };
/* Writes the member of f from node; on false, why says what is wrong and out keeps its value. */
bool cfg_assign(const struct cfg_field *f, void *out, const struct ytree *t, int node,
                char why[CFG_REASON_MAX]);
void cfg_clear(const struct cfg_field *f, void *out); /* frees what the member owns */
bool cfg_has_member(const struct cfg_field *f);
/* The closest key or section of the table that may be given, or NULL when none is close. The
 * answer lies in buf when it is a section. */
const char *cfg_suggest(const struct cfg_field *schema, int n, const char *key, char *buf,
                        size_t size);
void cfg_number(char *out, size_t size, double v); /* shortest text that reads back the same */
#endif
