/* A device for tests of transports between devices: the ops of ref, in host memory, and queues,
 * each with a thread that is late. What is queued without waiting for the device's own work first
 * stops the test, as it would be a race on a GPU. */
#ifndef TESTS_QUEUE_DEV_H
#define TESTS_QUEUE_DEV_H
/* Makes the device known under this name, and the fake NCCL beside the program the one that is
 * used. Before any thread is started. */
#define QUEUE_DEV "ref-queues"
void queue_dev_register(void);
void *queue_dev_nccl(const char *symbol); /* of the fake library */
#endif
