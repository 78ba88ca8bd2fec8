/* SPDX-License-Identifier: Apache-2.0 */
/* The processes whose memory is moved, and what frames it is in. */
#ifndef HOLDERS_H
#define HOLDERS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct holder {
	pid_t pid;
	int in, out;		/* pipes to and from it */
	int pagemap;
	uint64_t base;		/* of its memory */
	uint64_t gone;		/* address range that it has unmapped again, as large */
};

struct holders {
	struct holder *all;
	size_t n, pages_each;
};

/* Start n processes that map and write `bytes` in all, on that node. */
void holders_start(struct holders *h, size_t n, uint64_t bytes, int node);
/* How many pages no longer have their content. */
size_t holders_check(struct holders *h);
void holders_stop(struct holders *h);

/* The owner and the address of page g of all. */
struct holder *page_holder(const struct holders *h, size_t g);
uint64_t page_va(const struct holders *h, size_t g);
/* Physical addresses of pages g[0..n), which must ascend; 0 where it is not present. */
void page_addresses(const struct holders *h, const uint32_t *g, size_t n, uint64_t *phys);

/* n physical addresses of free frames of a node: stale ones. Which, changes from call to call. */
void free_addresses(int node, size_t n, uint64_t *phys);
uint64_t frames_in_all(void);

uint64_t random_below(uint64_t n);
void fail(const char *what) __attribute__((noreturn));

#endif
