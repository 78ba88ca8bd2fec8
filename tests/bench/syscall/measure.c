// SPDX-License-Identifier: Apache-2.0
/*
 * What it costs to move pages, by four ways, in one run on one machine. Prints one JSON object per
 * sample; the driver beside this file makes sense of them.
 *
 *   measure time PROCESSES MIB BATCH:CALLS:ROUNDS:SCANS...
 *   measure memory PROCESSES MIB BATCH...
 *
 * PROCESSES processes map MIB in all, on the slow node. A sample moves random pages of theirs to
 * the fast node and back again, CALLS batches each way. Round 0 warms up.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "scratch.h"
#include "ways.h"

#define TABLES 4			/* most rounds of what takes long */
#define PROCESSES 2

enum way { PHYS, KNOWN, SCAN, TABLE, PROCESS };
static const char *const names[] = { "phys", "known", "scan", "table", "process" };

struct clock {
	uint64_t cpu, wall;
};

struct sample {
	const char *variant;	/* move, still, or back: see measure_table() */
	enum way way;
	size_t batch, stale, round, calls;
	size_t wanted, moved;	/* pages, both directions together */
	uint64_t migrated;	/* by /proc/vmstat */
	struct clock used;
};

static uint64_t now(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void start(struct clock *c)
{
	c->wall = now(CLOCK_MONOTONIC);
	c->cpu = now(CLOCK_THREAD_CPUTIME_ID);
}

static void stop(struct clock *used, const struct clock *begin)
{
	used->cpu += now(CLOCK_THREAD_CPUTIME_ID) - begin->cpu;
	used->wall += now(CLOCK_MONOTONIC) - begin->wall;
}

static uint64_t migrated(void)
{
	FILE *file = fopen("/proc/vmstat", "re");
	char name[64];
	unsigned long long value, found = 0;

	while (file && fscanf(file, "%63s %llu", name, &value) == 2)
		if (!strcmp(name, "pgmigrate_success"))
			found = value;
	if (file)
		fclose(file);
	return found;
}

static void print(const struct sample *s, const struct holders *h)
{
	printf("{\"kind\": \"time\", \"processes\": %zu, \"way\": \"%s\", \"variant\": \"%s\","
	       " \"batch\": %zu, \"stale\": %zu, \"round\": %zu, \"calls\": %zu, \"wanted\": %zu,"
	       " \"moved\": %zu, \"migrated\": %llu, \"cpu_ns\": %llu, \"wall_ns\": %llu}\n",
	       h->n, names[s->way], s->variant, s->batch, s->stale, s->round, s->calls, s->wanted,
	       s->moved, (unsigned long long)s->migrated, (unsigned long long)s->used.cpu,
	       (unsigned long long)s->used.wall);
	fflush(stdout);
}

/* One direction of a sample. */
static void leg(struct sample *s, struct batches *b, const struct holders *h, int from, int to)
{
	uint64_t before = migrated();
	struct clock begin;
	size_t done = 0;

	batches_prepare(b, h, from, to);
	start(&begin);
	if (s->way == PHYS)
		move_phys(b);
	else if (s->way == KNOWN)
		move_known(b);
	else
		done = move_scanned(b);
	stop(&s->used, &begin);
	s->migrated += migrated() - before;
	s->moved += s->way == SCAN ? done : batches_done(b, to);
	s->wanted += b->calls * b->live;
	if (s->way == PHYS && s->round == 0 && batches_wrong(b, h))
		fail("a page is not where it was reported to be");
}

static struct sample sample_of(struct batches *b, size_t batch, enum way way, size_t round,
			       int still)
{
	return (struct sample){
		.way = way, .batch = batch, .round = round, .calls = b->calls,
		.stale = b->n == b->live ? 0 : 50, .variant = still ? "still" : "move",
	};
}

/* There and back again; or, with `still`, to where they are. */
static void measure(struct batches *b, const struct holders *h, size_t batch, enum way way,
		    size_t round, int still)
{
	struct sample s = sample_of(b, batch, way, round, still);

	leg(&s, b, h, SLOW, still ? SLOW : FAST);
	if (!still)
		leg(&s, b, h, FAST, SLOW);
	print(&s, h);
}

/* Both of the ways that are compared, as first, second, second, first, so that neither has the
 * better half of a disturbance: each there and back again. */
static void measure_pair(struct batches *b, const struct holders *h, size_t batch, size_t round)
{
	enum way first = round % 2 ? KNOWN : PHYS, second = round % 2 ? PHYS : KNOWN;
	struct sample s = sample_of(b, batch, first, round, 0);
	struct sample t = sample_of(b, batch, second, round, 0);

	leg(&s, b, h, SLOW, FAST);
	leg(&t, b, h, FAST, SLOW);
	leg(&t, b, h, SLOW, FAST);
	leg(&s, b, h, FAST, SLOW);
	print(&s, h);
	print(&t, h);
}

struct plan {
	size_t batch, calls, rounds, scans;
};

static void round_of(const struct holders *h, const struct plan *p, size_t round)
{
	struct batches clean, stale, one;
	size_t n = p->batch > 1 ? p->batch : 2;	/* one stale address beside one page */
	int turn = round % 2;

	batches_choose(&clean, h, p->calls, p->batch, p->batch);
	batches_choose(&stale, h, p->calls, n, n / 2);
	measure_pair(turn ? &stale : &clean, h, p->batch, round);
	measure_pair(turn ? &clean : &stale, h, p->batch, round);
	if (round <= p->scans) {
		/* One batch each way: the translation is long enough to time. */
		batches_choose(&one, h, 1, n, n / 2);
		measure(&one, h, p->batch, SCAN, round, 0);
		batches_free(&one);
		batches_choose(&one, h, 1, p->batch, p->batch);
		measure(&one, h, p->batch, SCAN, round, 0);
		measure(&one, h, p->batch, SCAN, round, 1);
		batches_free(&one);
	}
	measure(&clean, h, p->batch, turn ? KNOWN : PHYS, round, 1);
	measure(&clean, h, p->batch, turn ? PHYS : KNOWN, round, 1);
	batches_free(&clean);
	batches_free(&stale);
}

/* One translation pass that serves a batch of each size: batch 0 is the pass itself. */
static void measure_table(const struct holders *h, const struct plan *plans, size_t n, size_t round)
{
	struct sample pass = { .way = TABLE, .round = round, .variant = "move", .calls = 1 };
	struct clock begin;
	struct table t;

	start(&begin);
	table_start(&t, frames_in_all());
	pass.wanted = scan_processes(table_visit, &t);
	stop(&pass.used, &begin);
	print(&pass, h);
	for (size_t i = 0; i < n; i++) {
		struct batches b;
		struct sample s;

		/* There only, as a table that serves again has to be made again. The way back is what
		 * it is compared with. */
		batches_choose(&b, h, 1, plans[i].batch, plans[i].batch);
		s = sample_of(&b, plans[i].batch, TABLE, round, 0);
		batches_prepare(&b, h, SLOW, FAST);
		start(&begin);
		s.moved = move_tabled(&b, &t);
		stop(&s.used, &begin);
		s.wanted = b.live;
		print(&s, h);
		s = sample_of(&b, plans[i].batch, PHYS, round, 0);
		s.variant = "back";
		leg(&s, &b, h, FAST, SLOW);
		print(&s, h);
		batches_free(&b);
	}
	table_free(&t);
}

static void measure_process(const struct holders *h, size_t round)
{
	pid_t pid = h->all[random_below(h->n)].pid;
	struct sample move = { .way = PROCESS, .round = round, .variant = "move", .calls = 1 };
	struct sample still = { .way = PROCESS, .round = round, .variant = "still", .calls = 1 };
	uint64_t before = migrated();
	struct clock begin;
	long left;

	start(&begin);
	left = move_process(pid, SLOW, FAST);
	left += move_process(pid, FAST, SLOW);
	stop(&move.used, &begin);
	move.migrated = migrated() - before;
	move.wanted = 2 * h->pages_each;
	move.moved = move.wanted - left;
	print(&move, h);
	start(&begin);
	move_process(pid, FAST, SLOW);
	stop(&still.used, &begin);
	still.wanted = still.moved = h->pages_each;
	print(&still, h);
}

static void pin(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) - 1, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

static void measure_times(struct holders *h, char **words, size_t n)
{
	struct plan plans[16];
	size_t most = 0;

	for (size_t i = 0; i < n; i++) {
		struct plan *p = &plans[i];

		if (i == 16 || sscanf(words[i], "%zu:%zu:%zu:%zu", &p->batch, &p->calls, &p->rounds,
				      &p->scans) != 4)
			fail("bad plan");
		most = p->rounds > most ? p->rounds : most;
	}
	/* All sizes in every round, so that none has the quiet hours of the machine to itself. */
	for (size_t round = 0; round <= most; round++)
		for (size_t i = 0; i < n; i++)
			if (round <= plans[i].rounds)
				round_of(h, &plans[i], round);
	for (size_t round = 0; round <= TABLES && round <= most; round++)
		measure_table(h, plans, n, round);
	for (size_t round = 0; round <= PROCESSES && round <= most; round++)
		measure_process(h, round);
	printf("{\"kind\": \"check\", \"processes\": %zu, \"pages\": %zu, \"damaged\": %zu}\n", h->n,
	       h->n * h->pages_each, holders_check(h));
}

int main(int argc, char **argv)
{
	struct holders h;

	if (argc < 5 || (strcmp(argv[1], "time") && strcmp(argv[1], "memory"))) {
		fprintf(stderr, "usage: measure time|memory PROCESSES MIB BATCH...\n");
		return 2;
	}
	call_number();
	pin();
	holders_start(&h, atoi(argv[2]), strtoull(argv[3], NULL, 10) << 20, SLOW);
	if (!strcmp(argv[1], "time"))
		measure_times(&h, argv + 4, argc - 4);
	else
		measure_memory(&h, argv + 4, argc - 4);
	holders_stop(&h);
	return 0;
}
