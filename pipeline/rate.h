/* Amounts and the rates they go at. */
#ifndef DECANT_PIPELINE_RATE_H
#define DECANT_PIPELINE_RATE_H

/* Seconds that an amount takes at so much a second; none where the rate is not known, 0. */
static inline double decant_seconds_of(double amount, double rate)
{
    return rate > 0 ? amount / rate : 0;
}

#endif
