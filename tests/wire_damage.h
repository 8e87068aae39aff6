/* Streams of messages between trainer and scorers, and damage to them, by a number. */
#ifndef TESTS_WIRE_DAMAGE_H
#define TESTS_WIRE_DAMAGE_H
#include "rl/reward_wire.h"
enum { DAMAGE_NONCE = 0x1234, DAMAGE_PING = 99 }; /* what HELLO and PONG answer, when they do */
void draw_from(int64_t number);                   /* all draws from here on follow from it */
uint32_t below(uint32_t n);
enum scene { AT_START, AT_WORK, ANYWHERE };
/* What a scorer says at its start, or when it has clips 1, 2, ...; or anything of both sides. */
void put_stream(struct wire_buf *b, enum scene scene);
/* Bits, bytes, fields and lengths, the latter mostly under right checksums; cut and glued streams;
 * random bytes. False: it is as it was. */
bool damage(struct wire_buf *b);
#endif
