/* SPDX-License-Identifier: Apache-2.0 */
/* The memory that each way takes beside the pages that it moves. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include "holders.h"

void measure_memory(const struct holders *h, char **words, size_t n);

#endif
