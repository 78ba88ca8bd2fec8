// SPDX-License-Identifier: Apache-2.0
/* SIGKILL in the middle of a call with a million entries. */
#include "stress.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define ENTRIES (1UL << 20)
#define OURS (24 * MIB) /* of them, every second entry of the first half */
#define UNTOUCHED 0x55555555

static struct event *killed, *midway, *ended, *worst_ms;

struct victim {
	atomic_int state; /* 1: calls, 2: came back */
	u64 pages[ENTRIES];
	int nodes[ENTRIES], status[ENTRIES];
};

void kill_setup(void)
{
	killed = event("killed", 6);
	midway = event("killed midway", 4);
	ended = event("ended before", 0);
	worst_ms = event("worst ms to die", 0);
}

/* All of memory, and in between our own pages, so that there is something to move. */
static void gather(struct victim *v, const char *area)
{
	static u64 ours[OURS / PAGE];
	unsigned n = resolve(getpid(), (u64)area, OURS / PAGE, ours);
	u64 at = rnd() % (end_of_memory() / PAGE), node = rnd() % 2 ? slow : fast;

	for (u64 i = 0; i < ENTRIES; i++) {
		v->pages[i] = i % 2 && n ? ours[i / 2 % n] : (at++ * PAGE) % end_of_memory();
		v->nodes[i] = node;
		v->status[i] = UNTOUCHED;
	}
}

static u64 attempted(const struct victim *v)
{
	u64 from = 0, to = ENTRIES;

	while (from < to) {
		u64 middle = (from + to) / 2;

		if (((const volatile int *)v->status)[middle] == UNTOUCHED)
			to = middle;
		else
			from = middle + 1;
	}
	return from;
}

static void judge(const struct victim *v, bool by_signal, u64 took_ns)
{
	u64 done = attempted(v);

	for (u64 i = done; i < ENTRIES; i++)
		if (v->status[i] != UNTOUCHED) {
			broken("kill: entry %lu has a status, %lu has none", i, done);
			break;
		}
	if (!by_signal || atomic_load(&v->state) != 1) {
		count(ended, 1);
		return;
	}
	count(killed, 1);
	if (done && done < ENTRIES)
		count(midway, 1);
	if (took_ns / 1000000 > atomic_load(&worst_ms->count))
		atomic_store(&worst_ms->count, took_ns / 1000000);
}

static void once(struct victim *v, const char *area)
{
	u64 wanted = rnd() % (ENTRIES / 2), start;
	int status;

	gather(v, area);
	atomic_store(&v->state, 0);
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		atomic_store(&v->state, 1);
		move_phys_pages(ENTRIES, v->pages, v->nodes, v->status, MOVE_ALL | UNMAPPED);
		atomic_store(&v->state, 2);
		_exit(0);
	}
	while (((volatile int *)v->status)[wanted] == UNTOUCHED && atomic_load(&v->state) < 2)
		usleep(200);
	start = now_ns();
	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		die("waitpid");
	judge(v, WIFSIGNALED(status), now_ns() - start);
}

void kill_load(unsigned me)
{
	char *area = map_anon(OURS);
	struct victim *v = mmap(NULL, sizeof(*v), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (v == MAP_FAILED)
		die("mmap");
	for (u64 i = 0; i < OURS / PAGE; i++)
		fill(area + i * PAGE, (i + 1) << 9);
	publish(me * SLOTS, area, OURS / PAGE);
	while (!stopping()) {
		once(v, area);
		for (u64 i = rnd() % 8; i < OURS / PAGE; i += 8)
			check(area + i * PAGE, (i + 1) << 9, "pages of a call that was killed");
	}
	for (u64 i = 0; i < OURS / PAGE; i++)
		check(area + i * PAGE, (i + 1) << 9, "pages of calls that were killed");
}
