/* How far the host is ahead of a device that it gives work. Receiving a message copies it, for milliseconds in
 * which the host issues nothing; only where the device has so much before it does it not run dry meanwhile. */
#ifndef DECANT_PIPELINE_HOST_LEAD_H
#define DECANT_PIPELINE_HOST_LEAD_H

#include "kernels/backend.h"

#include <stdbool.h>

/* So many blocks of a model take a GPU longer than a message of their activations takes the host: five
 * milliseconds forward where hidden_size is 4096 and a micro-batch has 2048 tokens. */
enum { DECANT_HOST_LEAD_BLOCKS = 4 };

typedef struct decant_host_lead {
    decant_backend *backend;               /* borrowed */
    void *issued[DECANT_HOST_LEAD_BLOCKS]; /* moments behind the last blocks, in turn */
    int next;
} decant_host_lead;

/* Close it, after a failure too. */
decant_status decant_host_lead_open(decant_backend *backend, decant_host_lead *lead, decant_error *err);
void decant_host_lead_close(decant_host_lead *lead); /* takes zeros */

/* Call it behind every block that was issued. True when the device has not finished the block that was issued
 * DECANT_HOST_LEAD_BLOCKS calls ago, and so has all later ones before it. */
bool decant_host_lead_suffices(decant_host_lead *lead);

#endif
