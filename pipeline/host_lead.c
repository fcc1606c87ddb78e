/* See host_lead.h. A moment that was never marked is reached. */
#include "pipeline/host_lead.h"

decant_status decant_host_lead_open(decant_backend *backend, decant_host_lead *lead, decant_error *err)
{
    decant_status status = DECANT_OK;
    *lead = (decant_host_lead){.backend = backend};
    for (int i = 0; i < DECANT_HOST_LEAD_BLOCKS && status == DECANT_OK; i++)
        status = backend->memory->create_moment(backend, &lead->issued[i], err);
    return status;
}

void decant_host_lead_close(decant_host_lead *lead)
{
    for (int i = 0; lead->backend && i < DECANT_HOST_LEAD_BLOCKS; i++)
        lead->backend->memory->release_moment(lead->backend, &lead->issued[i]);
    *lead = (decant_host_lead){0};
}

bool decant_host_lead_suffices(decant_host_lead *lead)
{
    decant_backend *backend = lead->backend;
    void *moment = lead->issued[lead->next];
    decant_error unused; /* what failed, the next work tells */
    bool suffices = !backend->memory->is_reached(backend, moment);
    backend->memory->mark(backend, moment, &unused);
    lead->next = (lead->next + 1) % DECANT_HOST_LEAD_BLOCKS;
    return suffices;
}
