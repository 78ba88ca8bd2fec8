// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ways.h"

#define REPORT (1U << 20)	/* MOVE_PHYS_PAGES_REPORT */
#define UNTOUCHED (-1000)

struct placed {
	uint64_t phys;
	uint32_t page;
};

static int by_page(const void *a, const void *b)
{
	const uint32_t *p = a, *q = b;

	return (*p > *q) - (*p < *q);
}

static int by_address(const void *a, const void *b)
{
	const struct placed *p = a, *q = b;

	return (p->phys > q->phys) - (p->phys < q->phys);
}

static void *array(size_t n, size_t size)
{
	void *result = calloc(n ? n : 1, size);

	if (!result)
		fail("memory");
	return result;
}

/* Random pages without duplicates, in ascending order within each call; random places among the
 * entries for the stale ones. */
void batches_choose(struct batches *b, const struct holders *h, size_t calls, size_t n, size_t live)
{
	size_t total = h->n * h->pages_each;
	uint32_t *all = array(total, sizeof(*all));

	memset(b, 0, sizeof(*b));
	b->calls = calls;
	b->n = n;
	b->live = live;
	b->page = array(calls * live, sizeof(*b->page));
	b->stale = array(calls * n, 1);
	b->phys = array(calls * n, sizeof(*b->phys));
	b->page_at = array(calls * n, sizeof(*b->page_at));
	b->va = array(calls * n, sizeof(*b->va));
	b->groups = array(calls * n, sizeof(*b->groups));
	b->group_of = array(calls + 1, sizeof(*b->group_of));
	b->nodes = array(calls * n, sizeof(*b->nodes));
	b->status = array(calls * n, sizeof(*b->status));
	for (size_t i = 0; i < total; i++)
		all[i] = i;
	for (size_t i = 0; i < calls * live; i++) {
		size_t k = i + random_below(total - i);

		b->page[i] = all[k];
		all[k] = all[i];
	}
	free(all);
	for (size_t k = 0; k < calls; k++) {
		qsort(b->page + k * live, live, sizeof(*b->page), by_page);
		for (size_t left = n - live; left; ) {
			unsigned char *at = b->stale + k * n + random_below(n);

			left -= !*at;
			*at = 1;
		}
	}
}

void batches_free(struct batches *b)
{
	free(b->page);
	free(b->stale);
	free(b->phys);
	free(b->page_at);
	free(b->va);
	free(b->groups);
	free(b->group_of);
	free(b->nodes);
	free(b->status);
}

static void prepare_addresses(struct batches *b, const struct holders *h, int from)
{
	size_t stale = b->n - b->live;
	uint64_t *live = array(b->live, sizeof(*live)), *gone = array(b->calls * stale, sizeof(*gone));
	struct placed *placed = array(b->live, sizeof(*placed));

	free_addresses(from, b->calls * stale, gone);
	for (size_t k = 0; k < b->calls; k++) {
		const uint32_t *page = b->page + k * b->live;
		struct placed *next = placed;
		const uint64_t *next_gone = gone + k * stale;

		page_addresses(h, page, b->live, live);
		for (size_t i = 0; i < b->live; i++)
			placed[i] = (struct placed){ live[i], page[i] };
		qsort(placed, b->live, sizeof(*placed), by_address);
		for (size_t i = k * b->n; i < (k + 1) * b->n; i++) {
			b->phys[i] = b->stale[i] ? *next_gone++ : next->phys;
			if (!b->stale[i])
				b->page_at[i] = next++->page;
		}
	}
	free(live);
	free(gone);
	free(placed);
}

static void add_group(struct batches *b, size_t *groups, pid_t pid, size_t i, size_t k)
{
	struct group *last = *groups > b->group_of[k] ? &b->groups[*groups - 1] : NULL;

	if (!last || last->pid != pid) {
		last = &b->groups[(*groups)++];
		*last = (struct group){ pid, i, 0 };
	}
	last->n++;
}

static void prepare_virtual(struct batches *b, const struct holders *h)
{
	size_t groups = 0;

	for (size_t k = 0; k < b->calls; k++) {
		const uint32_t *page = b->page + k * b->live;
		size_t done = 0;

		b->group_of[k] = groups;
		for (size_t i = k * b->n; i < (k + 1) * b->n; i++) {
			/* A stale address is one of the process whose turn it is. */
			size_t g = page[done < b->live ? done : b->live - 1];
			const struct holder *one = page_holder(h, g);
			uint64_t gone = one->gone + random_below(h->pages_each) * PAGE;

			b->va[i] = (void *)(b->stale[i] ? gone : page_va(h, g));
			done += !b->stale[i];
			add_group(b, &groups, one->pid, i, k);
		}
	}
	b->group_of[b->calls] = groups;
}

void batches_prepare(struct batches *b, const struct holders *h, int from, int to)
{
	prepare_addresses(b, h, from);
	prepare_virtual(b, h);
	for (size_t i = 0; i < b->calls * b->n; i++) {
		b->nodes[i] = to;
		b->status[i] = UNTOUCHED;
	}
}

long call_number(void)
{
	static long number;
	FILE *file;

	if (number)
		return number;
	file = fopen("/sys/kernel/mm/move_phys_pages/number", "re");
	if (!file || fscanf(file, "%ld", &number) != 1)
		fail("this kernel does not name move_phys_pages");
	fclose(file);
	return number;
}

void move_phys(struct batches *b)
{
	long number = call_number();

	for (size_t at = 0; at < b->calls * b->n; at += b->n)
		if (syscall(number, b->n, b->phys + at, b->nodes + at, b->status + at,
			    MPOL_MF_MOVE_ALL | REPORT))
			fail("move_phys_pages");
}

static void move_group(const struct group *g, void **va, int *nodes, int *status)
{
	/* Positive: pages that could not be migrated; their status tells. */
	if (syscall(SYS_move_pages, g->pid, g->n, va + g->first, nodes + g->first,
		    status + g->first, MPOL_MF_MOVE_ALL) < 0 && errno != ESRCH)
		fail("move_pages");
}

void move_known(struct batches *b)
{
	for (size_t i = 0; i < b->group_of[b->calls]; i++)
		move_group(&b->groups[i], b->va, b->nodes, b->status);
}

size_t move_scanned(struct batches *b)
{
	size_t done = 0;

	for (size_t k = 0; k < b->calls; k++) {
		struct search s;

		search_start(&s, b->phys + k * b->n, b->n);
		search_drop_unmapped(&s);
		if (s.left)
			scan_processes(search_visit, &s);
		int *nodes = malloc(s.found * sizeof(*nodes));
		int *status = malloc(s.found * sizeof(*status));

		for (size_t i = 0; i < s.found; i++)
			nodes[i] = b->nodes[k * b->n + s.index[i]];
		for (size_t i = 0; i < s.nr_groups; i++)
			move_group(&s.groups[i], s.va, nodes, status);
		/* The answer belongs to the address that was asked for. */
		for (size_t i = 0; i < s.found; i++) {
			b->status[k * b->n + s.index[i]] = status[i];
			done += status[i] == nodes[i];
		}
		free(nodes);
		free(status);
		search_free(&s);
	}
	return done;
}

/* Bring the found pages of each process together: count, then place. Pids fit the table. */
static size_t group_by_process(const pid_t *pids, const uint64_t *at, size_t n, void **va,
			       struct group *groups, uint32_t *group_of_pid, size_t mask)
{
	size_t nr = 0, first = 0;

	for (size_t i = 0; i < n; i++) {
		size_t slot = pids[i] * 2654435761U & mask;

		while (group_of_pid[slot] && groups[group_of_pid[slot] - 1].pid != pids[i])
			slot = (slot + 1) & mask;
		if (!group_of_pid[slot]) {
			groups[nr++] = (struct group){ pids[i], 0, 0 };
			group_of_pid[slot] = nr;
		}
		groups[group_of_pid[slot] - 1].n++;
	}
	for (size_t i = 0; i < nr; i++) {
		groups[i].first = first;
		first += groups[i].n;
		groups[i].n = 0;
	}
	for (size_t i = 0; i < n; i++) {
		size_t slot = pids[i] * 2654435761U & mask;

		while (groups[group_of_pid[slot] - 1].pid != pids[i])
			slot = (slot + 1) & mask;
		struct group *g = &groups[group_of_pid[slot] - 1];

		va[g->first + g->n++] = (void *)at[i];
	}
	return nr;
}

static size_t move_tabled_one(const struct table *t, const uint64_t *phys, size_t n, int node)
{
	size_t found = 0, done = 0, mask = 15, nr;
	pid_t *pids = malloc(n * sizeof(*pids));
	uint64_t *at = malloc(n * sizeof(*at));

	for (size_t i = 0; i < n; i++) {
		pids[found] = table_find(t, phys[i], &at[found]);
		found += pids[found] != 0;
	}
	while (mask < 2 * found)
		mask = 2 * mask + 1;
	void **va = malloc(found * sizeof(*va));
	struct group *groups = malloc(found * sizeof(*groups));
	uint32_t *slots = calloc(mask + 1, sizeof(*slots));
	int *nodes = malloc(found * sizeof(*nodes)), *status = malloc(found * sizeof(*status));

	nr = group_by_process(pids, at, found, va, groups, slots, mask);
	for (size_t i = 0; i < found; i++)
		nodes[i] = node;
	for (size_t i = 0; i < nr; i++)
		move_group(&groups[i], va, nodes, status);
	for (size_t i = 0; i < found; i++)
		done += status[i] == node;
	free(pids);
	free(at);
	free(va);
	free(groups);
	free(slots);
	free(nodes);
	free(status);
	return done;
}

size_t move_tabled(struct batches *b, const struct table *t)
{
	size_t done = 0;

	for (size_t k = 0; k < b->calls; k++)
		done += move_tabled_one(t, b->phys + k * b->n, b->n, b->nodes[k * b->n]);
	return done;
}

long move_process(pid_t pid, int from, int to)
{
	unsigned long old = 1UL << from, new = 1UL << to;
	long left = syscall(SYS_migrate_pages, pid, 64, &old, &new);

	if (left < 0)
		fail("migrate_pages");
	return left;
}

size_t batches_done(const struct batches *b, int node)
{
	size_t done = 0;

	for (size_t i = 0; i < b->calls * b->n; i++)
		done += !b->stale[i] && b->status[i] == node;
	return done;
}

size_t batches_wrong(const struct batches *b, const struct holders *h)
{
	size_t wrong = 0;
	uint64_t now;

	for (size_t i = 0; i < b->calls * b->n; i++) {
		if (b->stale[i])
			continue;
		page_addresses(h, &b->page_at[i], 1, &now);
		wrong += now != b->phys[i];
	}
	return wrong;
}
