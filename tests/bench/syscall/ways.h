/* SPDX-License-Identifier: Apache-2.0 */
/* The ways to move the pages of a batch. What is done before the clock starts is what each way's
 * user has anyway: physical addresses, or processes and virtual addresses. */
#ifndef WAYS_H
#define WAYS_H

#include "holders.h"
#include "translate.h"

#define FAST 0			/* nodes of the machine */
#define SLOW 1

struct batches {
	size_t calls;		/* batches in here, one after another in all arrays */
	size_t n;		/* entries of each */
	size_t live;		/* entries of each that are still pages of someone */
	uint32_t *page;		/* [calls * live] which pages */
	unsigned char *stale;	/* [calls * n] which entries name no page any more */
	uint64_t *phys;		/* [calls * n] */
	uint32_t *page_at;	/* [calls * n] page of the entry; that of stale ones is random */
	void **va;		/* [calls * n] */
	struct group *groups;	/* runs of one process in va; a call has group_of[k]..[k + 1] */
	size_t *group_of;	/* [calls + 1] */
	int *nodes, *status;	/* [calls * n] */
};

void batches_choose(struct batches *b, const struct holders *h, size_t calls, size_t n,
		    size_t live);
void batches_free(struct batches *b);
/* Fill what the ways are given: addresses as they are now, the target, a poisoned status. */
void batches_prepare(struct batches *b, const struct holders *h, int from, int to);

/* Each moves all batches. */
void move_phys(struct batches *b);
void move_known(struct batches *b);
/* Translation included. Returns how many pages it found and moved to the node. */
size_t move_scanned(struct batches *b);
size_t move_tabled(struct batches *b, const struct table *t);
/* The whole of a process; returns pages that were left, negative errors as fail(). */
long move_process(pid_t pid, int from, int to);

long call_number(void);
/* Live entries whose status says that they are on the node. */
size_t batches_done(const struct batches *b, int node);
/* Entries whose reported address is not where their page is. */
size_t batches_wrong(const struct batches *b, const struct holders *h);

#endif
