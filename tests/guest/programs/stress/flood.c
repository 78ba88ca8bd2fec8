// SPDX-License-Identifier: Apache-2.0
/*
 * Calls without end on the addresses that the loads have right now, on ones that they had, in
 * both directions and with all flags; and what the call has promised is checked of each answer.
 */
#include "stress.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#define BATCH 1024
#define RING 16384 /* addresses that were seen before */

static u64 pages[BATCH], asked[BATCH];
static int nodes[BATCH], status[BATCH];
static u64 ring[RING];

static unsigned batch_size(void)
{
	static const unsigned sizes[] = {1, 1, 8, 64, 256, 512, BATCH * 3 / 4};

	return sizes[rnd() % (sizeof(sizes) / sizeof(*sizes))];
}

/* A part of some target, of at most that many pages; pid 0: there is none. */
static struct target part_of_target(unsigned most)
{
	struct target target = {0};

	for (int i = 0; i < 200 && !target.pid; i++)
		target = ctl->targets[rnd() % MAX_TARGETS];
	if (!target.pid || !target.pages)
		return (struct target){0};

	u64 first = rnd() % target.pages;
	if (first + most > target.pages)
		first = target.pages > most ? target.pages - most : 0;
	target.start += first * PAGE;
	if (most < target.pages)
		target.pages = most;
	return target;
}

/* Pages that a load maps now. */
static unsigned fresh(unsigned most)
{
	struct target target = part_of_target(most);
	unsigned n = 0;

	if (!target.pid)
		return 0;
	unsigned got = resolve(target.pid, target.start, target.pages, pages);

	for (unsigned i = 0; i < got; i++)
		if (pages[i]) {
			ring[rnd() % RING] = pages[i];
			pages[n++] = pages[i] + rnd() % PAGE;
		}
	return n;
}

/* Anything that 64 bits can hold, most of it near memory. */
static unsigned anywhere(unsigned most)
{
	u64 end = end_of_memory(), start = rnd() % end;

	for (unsigned i = 0; i < most; i++) {
		switch (rnd() % 8) {
		case 0: pages[i] = rnd(); break;
		case 1: pages[i] = rnd() % (end + end / 4); break;
		case 2: pages[i] = rnd() % (end / block_bytes() + 1) * block_bytes() - rnd() % 2; break;
		case 3: pages[i] = rnd() % end; break;
		default: pages[i] = start + i * PAGE; break;
		}
	}
	return most;
}

static void shuffle(unsigned n)
{
	for (unsigned i = n; i > 1; i--) {
		unsigned other = rnd() % i;
		u64 page = pages[i - 1];

		pages[i - 1] = pages[other];
		pages[other] = page;
	}
}

static unsigned gather(struct flooder *f, unsigned how)
{
	unsigned most = batch_size();
	unsigned n = how & RANDOM_ADDRESSES && rnd() % 4 ? anywhere(most) : fresh(most);
	unsigned stale = rnd() % 4 ? n / 4 + !n : 0;

	for (unsigned i = 0; i < stale && n < BATCH; i++) {
		u64 address = ring[rnd() % RING];

		if (address) {
			pages[n++] = address;
			f->stale++;
		}
	}
	if (rnd() % 2)
		shuffle(n);
	return n;
}

/* The flags of a call. Wide ones are common, so that shared and unmapped pages move, too. */
static unsigned choose_flags(void)
{
	unsigned flags = rnd() % 4 ? MOVE_ALL : MOVE;

	if (rnd() % 2)
		flags |= UNMAPPED;
	if (rnd() % 2)
		flags |= REPORT;
	if (!(rnd() % 4))
		flags |= NONBLOCK;
	if (!(rnd() % 4))
		flags |= MEMPOLICY;
	if (!(rnd() % 8))
		flags |= SOURCE;
	return flags & known_flags();
}

/* All to one node or each to its own; true when it is one. */
static bool aim(unsigned me, unsigned how, unsigned n)
{
	unsigned both[] = {fast, slow};
	bool mixed = !(how & FIXED_DIRECTION) && !(rnd() % 3);
	unsigned node = both[how & FIXED_DIRECTION ? me % 2 : rnd() % 2];

	for (unsigned i = 0; i < n; i++)
		nodes[i] = mixed ? both[rnd() % 2] : node;
	return !mixed;
}

static bool code_fits(int code, unsigned flags)
{
	switch (code) {
	case EACCES: case EAGAIN: case EBUSY: case EFAULT: case EMLINK: case ENOENT: case ENOMEM:
	case ENXIO: case EOPNOTSUPP: case ENODEV:
		return true;
	case ENODATA:
		return !(flags & UNMAPPED);
	case EPERM:
		return !(flags & MOVE_ALL);
	case EXDEV:
		return flags & MEMPOLICY;
	case ESTALE:
		return flags & SOURCE;
	default:
		return false;
	}
}

/* One answer: is it one that the call may give, and what does it say. */
static void judge(struct flooder *f, unsigned i, unsigned flags, bool one_node, bool blocks_stay)
{
	bool reported = flags & REPORT && pages[i] != asked[i];

	if (status[i] < 0) {
		if (!code_fits(-status[i], flags))
			broken("status %d of %#lx with flags %#x", status[i], asked[i], flags);
		else
			f->refused[-status[i]]++;
		if (reported)
			broken("a new address %#lx with status %d", pages[i], status[i]);
		return;
	}
	if (status[i] >= MAX_NODES || (one_node && status[i] != nodes[i])) {
		broken("%#lx on node %d, asked for %d", asked[i], status[i], nodes[i]);
		return;
	}
	if (reported && blocks_stay &&
	    (node_of(pages[i]) != status[i] || (pages[i] ^ asked[i]) % PAGE))
		broken("%#lx is said to be at %#lx on node %d", asked[i], pages[i], status[i]);
	if (flags & REPORT ? reported : node_of(asked[i]) != status[i])
		f->moved[status[i]]++;
	else
		f->there++;
}

void flood(unsigned me, unsigned how)
{
	struct flooder *f = &ctl->flooders[me];

	while (!stopping()) {
		unsigned n = gather(f, how), flags = choose_flags();

		if (!n) {
			usleep(2000);
			continue;
		}
		bool one_node = aim(me, how, n);
		memcpy(asked, pages, n * sizeof(*pages));
		for (unsigned i = 0; i < n; i++)
			status[i] = flags & SOURCE && rnd() % 8 ? node_of(pages[i]) : (int)fast;

		u64 start = now_ns();
		atomic_fetch_add(&f->started, 1);
		long left = move_phys_pages(n, pages, nodes, status, flags);
		int error = errno;
		atomic_fetch_add(&f->finished, 1);
		u64 took = now_ns() - start;

		if (took > f->worst_ns)
			f->worst_ns = took;
		f->entries += n;
		if (left) {
			broken("the call returned %ld (%s)", left, left < 0 ? strerror(error) : "short");
			continue;
		}
		for (unsigned i = 0; i < n; i++)
			judge(f, i, flags, one_node, !(how & NODE_MAY_CHANGE));
	}
}

/*
 * The same with move_pages(2), for the question whether something that is seen is of our call
 * or of the kernel below it.
 */
void flood_with_move_pages(unsigned me, unsigned how)
{
	static void *addresses[BATCH];
	struct flooder *f = &ctl->flooders[me];

	while (!stopping()) {
		struct target target = part_of_target(batch_size());
		unsigned n = target.pages;

		if (!target.pid || resolve(target.pid, target.start, n, pages) != n) {
			usleep(2000);
			continue;
		}
		for (unsigned i = 0; i < n; i++)
			addresses[i] = (void *)(target.start + i * PAGE);
		aim(me, how, n);
		atomic_fetch_add(&f->started, 1);
		long left = syscall(SYS_move_pages, target.pid, (u64)n, addresses, nodes, status,
				    rnd() % 4 ? MOVE_ALL : MOVE);
		atomic_fetch_add(&f->finished, 1);
		f->entries += n;
		for (unsigned i = 0; i < n && !left; i++) {
			if (status[i] < 0 && -status[i] < MAX_ERRNO)
				f->refused[-status[i]]++;
			else if (pages[i] && node_of(pages[i]) != status[i])
				f->moved[status[i] % MAX_NODES]++;
			else
				f->there++;
		}
	}
}
