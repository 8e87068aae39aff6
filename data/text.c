#include "data/text.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"

char *text_clean(const char *text)
{
    char *out = malloc(strlen(text) + 1);
    CHECK(out, "out of memory");
    size_t n = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p > ' ' && *p != 0x7f)
            out[n++] = (char)*p;
        else if (n && out[n - 1] != ' ')
            out[n++] = ' ';
    }
    if (n && out[n - 1] == ' ') n--;
    out[n] = 0;
    return out;
}

bool text_is_utf8(const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        int more = *p < 0x80                 ? 0
                   : *p >= 0xC2 && *p < 0xE0 ? 1
                   : (*p & 0xF0) == 0xE0     ? 2
                   : *p >= 0xF0 && *p < 0xF5 ? 3
                                             : -1;
        if (more < 0) return false;
        /* overlong forms, surrogates, beyond U+10FFFF */
        if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] >= 0xA0) ||
            (p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] >= 0x90))
            return false;
        for (p++; more > 0; more--, p++) {
            if ((*p & 0xC0) != 0x80) return false;
        }
    }
    return true;
}
