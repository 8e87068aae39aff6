#include "rl/identity.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool may_differ(const char *line)
{
    static const char *const keys[] = {"device=", "torch=", "transformers=", "python="};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strncmp(line, keys[i], strlen(keys[i])) == 0) return true;
    return false;
}

/* The line of text that begins with the key of `line`, which ends with '='; NULL: none. */
static const char *line_of(const char *text, const char *line)
{
    const size_t n = strcspn(line, "=\n") + 1;
    for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n')
        if (strncmp(p, line, n) == 0) return p;
    return NULL;
}

static bool numbers_near(const char *a, const char *b)
{
    const char *enda = a + strcspn(a, "\n"), *endb = b + strcspn(b, "\n");
    a += strcspn(a, "=") + 1;
    b += strcspn(b, "=") + 1;
    while (a < enda && b < endb) {
        char *na, *nb;
        const double x = strtod(a, &na), y = strtod(b, &nb);
        if (na == a || nb == b || !(fabs(x - y) <= 1e-3)) return false;
        a = na + (*na == ',');
        b = nb + (*nb == ',');
    }
    return a >= enda && b >= endb;
}

static void say(char *out, size_t size, const char *a, const char *b)
{
    const size_t used = strlen(out);
    snprintf(out + used, size - used, "%s%.*s against %.*s", used ? "; " : "",
             (int)strcspn(a, "\n"), a, b ? (int)strcspn(b, "\n") : 7, b ? b : "nothing");
}

/* Every line of a against b. */
static bool covered(const char *a, const char *b, char *why, char *notice, size_t size, bool again)
{
    for (const char *p = a; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        const char *q = line_of(b, p);
        const size_t n = strcspn(p, "\n");
        if (q && strcspn(q, "\n") == n && strncmp(p, q, n) == 0) continue;
        if (may_differ(p)) {
            if (!again) say(notice, size, p, q);
            continue;
        }
        if (q && strncmp(p, "selftest=", 9) == 0 && numbers_near(p, q)) continue;
        say(why, size, p, q);
        return false;
    }
    return true;
}

bool identity_same(const char *a, const char *b, char *why, char *notice, size_t size)
{
    *why = *notice = 0;
    return covered(a, b, why, notice, size, false) && covered(b, a, why, notice, size, true);
}
