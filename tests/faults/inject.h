/* What the files of the preloaded library share; inject.c says what it is for. */
#ifndef DECANT_TESTS_FAULTS_INJECT_H
#define DECANT_TESTS_FAULTS_INJECT_H

#include <dlfcn.h>
#include <stdbool.h>

typedef enum fault_kind {
    MEMORY,        /* no memory is left */
    LIBRARY,       /* the same, for HDF5 and cJSON */
    MISSING,       /* a file that is read is not there */
    CREATE,        /* a file cannot be made */
    READ,          /* the disk cannot read */
    SHORT,         /* a read gives half of what was asked for */
    END,           /* a read finds the end of the file */
    MAP,           /* a file cannot be mapped */
    PAGE,          /* the disk cannot read the pages of a mapped file, from the middle on */
    WRITE,         /* the disk is full */
    PART,          /* the disk is full after half of what was to be written */
    SPACE,         /* no space can be taken */
    SYNC,          /* what was written cannot be brought to the disk */
    RENAME,        /* a file cannot get its name */
    DEVICE_MEMORY, /* no device memory, or no pinned memory, is left; a second try for as much fails too */
    LAUNCH,        /* a kernel or a recording cannot be launched */
    COPY,          /* bytes cannot be copied to, from or on the device, nor cleared there */
    PRODUCT,       /* cuBLAS or cuSPARSE fails */
    WAIT,          /* waiting for the device tells that its work failed */
    LOST,          /* the device is lost: from such a call on nothing asked of it succeeds */
    KINDS
} fault_kind;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Counts a call and reports it; is it the one that fails? `file` is what the call is about, - for nothing. */
bool fault_is(fault_kind kind, const char *file);

/* What is called until the end does not count. */
void fault_begin_inside(void);
void fault_end_inside(void);

#endif
