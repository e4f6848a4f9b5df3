// A list of calls that were made once and are made again, in order, by one, on any number of rows. Plain C.
#pragma once

#include <stdint.h>

// Which function a call is of.
enum {
    PENSTOCK_CALL_LINEAR = 0,
    PENSTOCK_CALL_ATTENTION = 1,
    PENSTOCK_CALL_HEADS = 2,
    PENSTOCK_CALL_NORM = 3,
    PENSTOCK_CALL_ACTIVATE = 4,
    PENSTOCK_CALL_UNPACK = 5,
    PENSTOCK_CALL_TAKE = 6,
    PENSTOCK_CALL_ELEMENTS = 7,
    PENSTOCK_CALL_TILES = 8,
};

typedef struct {
    int64_t function;
    void* arguments;  // the struct that it takes
} PenstockCall;
