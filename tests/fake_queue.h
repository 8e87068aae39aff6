/* What tests/queue_dev.c and tests/fake_nccl.c agree on: a queue is a pointer to this. */
#ifndef TESTS_FAKE_QUEUE_H
#define TESTS_FAKE_QUEUE_H
struct fake_queue {
    /* f(arg) runs on another thread after what the queue has been given before */
    void (*run)(struct fake_queue *q, void (*f)(void *arg), void *arg);
};
/* Of the fake library, for tests (queue_dev_nccl); a fault concerns the calling thread. */
enum fake_fault {
    FAKE_NONE,
    FAKE_ASYNC, /* the next collective fails on its way */
    FAKE_CALL,  /* the next call of a collective returns an error */
    FAKE_HANG   /* the next collective never ends by itself */
};
void fake_nccl_fault(enum fake_fault f);
int fake_nccl_aborts(void); /* communicators given up by this process */
#endif
