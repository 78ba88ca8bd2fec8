// SPDX-License-Identifier: Apache-2.0
/* Pages that thousands of processes map: refused at once; below the limit they move. */
#include "stress.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define BELOW 800 /* the limit is 1000 mappings */
#define TRIES 200

static struct event *most, *moved, *refused, *refused_copied, *us_moved, *us_refused;

static struct {
	char *anon, *file, *copied;
	atomic_uint *ready;
	pid_t *pids;
	unsigned n;
} all;

void mapped_setup(void)
{
	most = event("most processes", 0);
	most->need = processes;
	moved = event("moved below the limit", 6);
	moved->need = 6;
	refused = event("refused", 40);
	refused->need = 40;
	refused_copied = event("refused after COW", 20);
	refused_copied->need = 20;
	us_moved = event("us to move", 0);
	us_refused = event("us to refuse", 0);
}

/* Maps the first two pages and has its own copy of the third. */
static void child(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	*(volatile char *)all.file;
	if (*(volatile u64 *)all.anon != *(volatile u64 *)all.file)
		_exit(1);
	*(volatile char *)all.copied = 1;
	atomic_fetch_add(all.ready, 1);
	for (;;)
		pause();
}

static void await_children(void)
{
	while (atomic_load(all.ready) < all.n)
		usleep(2000);
}

/* A few at a time: thousands that are runnable at once would leave no CPU to anybody else. */
static void grow(unsigned to)
{
	while (all.n < to && !stopping()) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork number %u", all.n);
		if (!pid)
			child();
		all.pids[all.n++] = pid;
		if (all.n % 32 == 0)
			await_children();
	}
	await_children();
	if (all.n > atomic_load(&most->count))
		atomic_store(&most->count, all.n);
}

static void shrink(unsigned to)
{
	unsigned n = all.n;
	int status;

	for (unsigned i = to; i < n; i++)
		kill(all.pids[i], SIGKILL);
	for (unsigned i = to; i < n; i++) {
		if (waitpid(all.pids[i], &status, 0) != all.pids[i])
			die("waitpid");
		if (!WIFSIGNALED(status))
			broken("mapped: a child ended with status %d", status);
	}
	atomic_fetch_sub(all.ready, n - to);
	all.n = to;
}

/*
 * The flooders have the page as well, so it may be busy, or gone from the frame that it was in
 * a moment ago: ask until there is an answer.
 */
static bool is_final(int status)
{
	return status != -EBUSY && status != -EAGAIN && status != -ENOENT && status != -ENODATA;
}

static int settle(const char *page, int node, bool *moved, u64 *ns)
{
	int status = -EBUSY;

	for (int i = 0; i < TRIES && !is_final(status); i++) {
		if (i)
			dwell(3000);
		status = move_one(page, node, MOVE_ALL, moved, ns);
	}
	return status;
}

static void remember(struct event *event, u64 ns)
{
	u64 us = ns / 1000 + 1, before = atomic_load(&event->count);

	/* The quickest: what the call takes when nobody takes its CPU away. */
	if (!before || us < before)
		atomic_store(&event->count, us);
}

static void expect_moves(void)
{
	const char *pages[] = {all.anon, all.file, all.copied};

	for (int i = 0; i < 6; i++) {
		bool went;
		u64 ns;
		int status = settle(pages[i % 3], i / 3 ? fast : slow, &went, &ns);

		if (went) {
			count(moved, 1);
			if (i % 3 == 0 && all.n == BELOW)
				remember(us_moved, ns);
		} else if (status < 0 && is_final(status) && status != -ENOMEM) {
			broken("mapped by %u: status %d", all.n, status);
		}
	}
}

static void expect_refusal(const char *page, struct event *event, struct event *time)
{
	for (int i = 0; i < 10; i++) {
		u64 address[2] = {0, 0}, ns;
		bool went;

		resolve(getpid(), (u64)page, 1, &address[0]);
		/* Away from where it is, as to the same node there is nothing to refuse. */
		int away = node_of(address[0]) == (int)slow ? fast : slow;
		int status = settle(page, away, &went, &ns);

		resolve(getpid(), (u64)page, 1, &address[1]);
		if (went || address[0] != address[1])
			broken("mapped by %u and moved", all.n);
		else if (status == -EMLINK) {
			count(event, 1);
			if (time)
				remember(time, ns);
		} else if (is_final(status)) {
			broken("mapped by %u: status %d, not EMLINK", all.n, status);
		}
	}
}

static void check_pages(void)
{
	check(all.anon, 512, "page of many");
	check(all.file, 512, "file page of many");
	check(all.copied, 1024, "page that all have copied");
}

void mapped_load(unsigned me)
{
	all.anon = map_anon(PAGE);
	all.copied = map_anon(PAGE);
	all.file = map_file("/dev/shm", PAGE);
	all.ready = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	all.pids = map_anon(processes * sizeof(pid_t));
	if (all.ready == MAP_FAILED)
		die("mmap");
	fill(all.anon, 512);
	fill(all.file, 512);
	fill(all.copied, 1024);
	publish(me * SLOTS, all.anon, 1);
	publish(me * SLOTS + 1, all.file, 1);
	publish(me * SLOTS + 2, all.copied, 1);
	while (!stopping()) {
		grow(BELOW);
		if (all.n == BELOW)
			expect_moves();
		grow(processes);
		for (int i = 0; i < 4 && all.n == processes; i++) {
			expect_refusal(all.anon, refused, us_refused);
			expect_refusal(all.file, refused, NULL);
			expect_refusal(all.copied, refused_copied, NULL);
			check_pages();
		}
		shrink(BELOW / 2);
		expect_moves();
		check_pages();
	}
	shrink(0);
	check_pages();
	u64 quick = atomic_load(&us_refused->count), slowly = atomic_load(&us_moved->count);
	if (quick && slowly && quick * 3 > slowly)
		broken("mapped: refused in %lu us, moved in %lu us", quick, slowly);
}
