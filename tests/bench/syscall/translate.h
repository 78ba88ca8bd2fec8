/* SPDX-License-Identifier: Apache-2.0 */
/* From physical to virtual addresses by way of /proc: what a program does that has to name pages
 * to move_pages(2). */
#ifndef TRANSLATE_H
#define TRANSLATE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE_SHIFT 12
#define PAGE (1UL << PAGE_SHIFT)

/* Who wants to know: called with a run of /proc/PID/pagemap entries, n of them from `va` on.
 * Returns 0 when it knows enough. */
typedef int (*pagemap_visitor)(void *self, pid_t pid, uint64_t va, const uint64_t *entries,
			       size_t n);

/* All present pages of all processes, largest process first. Returns the entries read. */
size_t scan_processes(pagemap_visitor visit, void *self);

/* --- one batch: look only for the frames that are wanted --- */

struct group {			/* pages of one process, together in the arrays below */
	pid_t pid;
	size_t first, n;
};

struct search {
	const uint64_t *phys;	/* physical addresses, in any order, without duplicates */
	size_t n;
	size_t left;		/* not found yet */
	uint64_t max_pfn;
	uint64_t *bits;		/* wanted frames, one bit each */
	uint32_t *slots;	/* hash: index into phys, plus one */
	unsigned int slot_bits;

	size_t found;
	void **va;		/* found pages in the order of discovery */
	uint32_t *index;	/* ... and which of phys each is */
	struct group *groups;
	size_t nr_groups, max_groups;
};

void search_start(struct search *s, const uint64_t *phys, size_t n);
/* Of a few frames, give up those that nobody maps by /proc/kpagecount. */
void search_drop_unmapped(struct search *s);
int search_visit(void *self, pid_t pid, uint64_t va, const uint64_t *entries, size_t n);
void search_free(struct search *s);

/* --- many batches: keep what is known of every frame --- */

struct table {
	uint64_t *owner;	/* by frame: virtual page number and pid, 0: not mapped */
	uint64_t frames;
};

void table_start(struct table *t, uint64_t frames);
int table_visit(void *self, pid_t pid, uint64_t va, const uint64_t *entries, size_t n);
/* The owner of a frame; 0 when there is none. */
pid_t table_find(const struct table *t, uint64_t phys, uint64_t *va);
void table_free(struct table *t);

#endif
