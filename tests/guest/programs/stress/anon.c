// SPDX-License-Identifier: Apache-2.0
/* Anonymous pages against fork, copy on write, exit, SIGKILL and munmap. */
#include "stress.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGES 128UL
#define CHILD (1UL << 50)

static struct event *forked, *copied, *unmapped, *shot;

void anon_setup(void)
{
	forked = event("forked", 30);
	copied = event("pages copied on write", 500);
	unmapped = event("unmapped", 10);
	shot = event("shot", 3);
}

static u64 seed_of(u64 generation, u64 i)
{
	return generation << 20 | i << 9;
}

/* Overwrite one page of `step`, and look that the others are the parent's still. */
static void copy_on_write(char *area, u64 generation, u64 step, u64 mark)
{
	for (u64 i = 0; i < PAGES; i += step) {
		check(area + i * PAGE, seed_of(generation, i), "inherited");
		fill(area + i * PAGE, seed_of(generation, i) | mark);
	}
	for (u64 i = 0; i < PAGES; i++)
		check(area + i * PAGE, seed_of(generation, i) | (i % step ? 0 : mark), "after COW");
	count(copied, (PAGES + step - 1) / step);
}

static void child(unsigned slot, char *area, u64 generation)
{
	publish(slot, area, PAGES);
	copy_on_write(area, generation, 2, CHILD);
	if (rnd() % 2) {
		pid_t grandchild = fork();

		if (grandchild < 0)
			die("fork");
		if (!grandchild) {
			for (u64 i = 0; i < PAGES; i += 3)
				check(area + i * PAGE, seed_of(generation, i) | (i % 2 ? 0 : CHILD),
				      "inherited twice");
			_exit(0);
		}
		count(forked, 1);
		munmap(area + PAGES / 4 * PAGE, PAGES / 4 * PAGE);
		count(unmapped, 1);
		reap(grandchild, "grandchild");
	}
	dwell(3000);
	_exit(0);
}

/* SIGKILL in the middle of whatever it does; its own child goes to init. */
static void shoot(pid_t pid)
{
	int status;

	dwell(5000);
	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		die("waitpid");
	if (WIFSIGNALED(status))
		count(shot, 1);
	else if (status)
		broken("anon: child ended with status %d", WEXITSTATUS(status));
}

void anon_load(unsigned me)
{
	for (u64 generation = 1; !stopping(); generation++) {
		char *area = map_anon(PAGES * PAGE);

		for (u64 i = 0; i < PAGES; i++)
			fill(area + i * PAGE, seed_of(generation, i));
		publish(me * SLOTS, area, PAGES);
		dwell(3000);
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (!pid)
			child(me * SLOTS + 1, area, generation);
		count(forked, 1);
		if (rnd() % 2)
			copy_on_write(area, generation, 4, CHILD << 1);
		else
			copy_on_write(area, generation, PAGES, CHILD << 1);
		if (rnd() % 4)
			reap(pid, "child");
		else
			shoot(pid);
		withdraw(me * SLOTS + 1);
		munmap(area, PAGES / 2 * PAGE);
		for (u64 i = PAGES / 2 + 1; i < PAGES; i += 2)
			check(area + i * PAGE, seed_of(generation, i), "rest after munmap");
		munmap(area + PAGES / 2 * PAGE, PAGES / 2 * PAGE);
		count(unmapped, 2);
	}
	withdraw(me * SLOTS);
}
