/* A YAML document as a tree with the place of every node. What a configuration never needs is
 * refused: anchors, aliases, tags, several documents, deep or huge files. */
#ifndef CORE_YAML_TREE_H
#define CORE_YAML_TREE_H
#include <stdbool.h>
#include <stddef.h>

enum { YAML_MAX_NODES = 10000, YAML_MAX_DEPTH = 64, YAML_MAX_BYTES = 1 << 20 };
enum ynode_kind { Y_SCALAR, Y_LIST, Y_MAP };
struct ynode {
    enum ynode_kind kind;
    bool plain;       /* scalar without quotes */
    char *text;       /* scalar */
    int line, column; /* 1-based */
    int first, next;  /* indices, -1: none; children of a map: key, value, key, value, ... */
};
struct ytree {
    struct ynode *node;
    int n, root; /* root -1: empty document */
    char error[320];
    int line, column; /* of the error */
};
/* false: error, line and column say what is wrong. Free in either case. */
bool ytree_parse(struct ytree *t, const char *text, size_t size);
void ytree_free(struct ytree *t);
bool ynode_null(const struct ynode *n); /* plain null, ~ or nothing */
#endif
