/* Arrays of one matrix between the device and the file, in two steps, so that the device can work on the next
 * matrix while this one is written: first all downloads begin, later everything is written. Knows nothing of
 * what the arrays mean but how they are stored. */
#ifndef DECANT_STAGES_DEPARTURE_H
#define DECANT_STAGES_DEPARTURE_H

#include "io/container.h"
#include "kernels/backend.h"

enum { DECANT_DEPARTURE_ARRAYS = 8 };

/* One array, written as the whole of a dataset. */
typedef struct decant_departing_array {
    int id;             /* the dataset's number */
    const void *device; /* [count] */
    int64_t count;
    size_t element_bytes; /* on the device */
    bool is_narrowed;     /* U32 on the device, U16 in the file; every value fits */
    int levels;           /* F16 levels, so many a row, that take a byte each in the file; 0: something else */
    int exponents;        /* then the number of the dataset of their exponents; see level_bytes.h */
} decant_departing_array;

/* Begins as all zeros but for the backend; freed with decant_departure_free. */
typedef struct decant_departure {
    decant_backend *backend; /* borrowed */
    decant_departing_array arrays[DECANT_DEPARTURE_ARRAYS];
    int count;
    void *host; /* from allocate_host: the arrays one after the other; kept from matrix to matrix */
    size_t host_bytes;
} decant_departure;

/* Notes an array; there are at most DECANT_DEPARTURE_ARRAYS. */
void decant_departure_add(decant_departure *departure, decant_departing_array array);

/* Begins the downloads of all noted arrays, whose device memory may be released afterwards. */
decant_status decant_departure_begin(decant_departure *departure, decant_error *err);

/* Writes the arrays, once memory->finish_downloads has been called since they began, and forgets them. */
decant_status decant_departure_write(decant_departure *departure, decant_container_writer *writer,
                                     decant_error *err);

/* Waits for downloads that are still under way. */
void decant_departure_free(decant_departure *departure);

#endif
