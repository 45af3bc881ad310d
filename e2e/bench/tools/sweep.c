/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills the pinned flow table, and runs and times slices of the sweep.
 *
 *	sweep FLOWS PROGRAM
 *
 * Both are pins. Questions on standard input, one a line:
 *
 *	fill ENTRIES PERCENT	writes as many entries of flows that nobody has, evenly over the shards, so many in a
 *				hundred expired, the others with an hour to live; answers with how many there are then,
 *				if none has expired
 *	sweep SHARD		sweeps one shard until nothing expired is left; answers with the ns that each run took,
 *				as the kernel tells
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"

#define BATCH      4096
#define HOUR_NS    3600000000000ULL
#define FRAME_SIZE 64

static int shards[FLOW_SHARDS];
static int program;

static void fail(const char *what)
{
	printf("error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned long long now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static int call(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

static int open_pin(const char *path)
{
	union bpf_attr attributes = {.pathname = (unsigned long)path};
	int found = call(BPF_OBJ_GET, &attributes);

	if (found < 0)
		fail(path);
	return found;
}

static void open_shards(int flows)
{
	for (unsigned i = 0; i < FLOW_SHARDS; i++) {
		unsigned id;
		union bpf_attr look = {.map_fd = flows, .key = (unsigned long)&i, .value = (unsigned long)&id};
		union bpf_attr get = {};

		if (call(BPF_MAP_LOOKUP_ELEM, &look))
			fail("shard");
		get.map_id = id;
		shards[i] = call(BPF_MAP_GET_FD_BY_ID, &get);
		if (shards[i] < 0)
			fail("shard");
	}
}

/* Writes `count` entries of a shard, numbered from `first` on, so many in a hundred expired. */
static void write_entries(int shard, unsigned first, unsigned count, unsigned percent)
{
	unsigned long long later_ns = now_ns() + HOUR_NS;
	static struct tuple keys[BATCH];
	static struct flow values[BATCH];
	union bpf_attr attributes = {};

	for (unsigned i = 0; i < count; i++) {
		keys[i] = (struct tuple){.protocol = 6, .sport_be = first + i, .dport_be = 1};
		keys[i].saddr.word_be[0] = 0x20010db8; /* in whatever order: nobody's */
		keys[i].saddr.word_be[3] = (first + i) >> 16;
		values[i] = (struct flow){.twin = keys[i], .state = FLOW_ESTABLISHED};
		values[i].expires_ns = (first + i) % 100 < percent ? 1 : later_ns;
	}
	attributes.batch.map_fd = shard;
	attributes.batch.count = count;
	attributes.batch.keys = (unsigned long)keys;
	attributes.batch.values = (unsigned long)values;
	if (call(BPF_MAP_UPDATE_BATCH, &attributes))
		fail("update");
}

static unsigned run_once(unsigned shard, unsigned *removed, unsigned *seen)
{
	struct __sk_buff context = {.cb = {shard}}, after = {};
	unsigned char frame[FRAME_SIZE] = {};
	union bpf_attr attributes = {};

	attributes.test.prog_fd = program;
	attributes.test.data_in = (unsigned long)frame;
	attributes.test.data_size_in = sizeof(frame);
	attributes.test.ctx_in = (unsigned long)&context;
	attributes.test.ctx_size_in = sizeof(context);
	attributes.test.ctx_out = (unsigned long)&after;
	attributes.test.ctx_size_out = sizeof(after);
	if (call(BPF_PROG_TEST_RUN, &attributes))
		fail("sweep");
	*removed = attributes.test.retval;
	*seen = after.cb[1];
	return attributes.test.duration;
}

static void sweep(unsigned shard)
{
	unsigned removed, seen;

	do {
		printf("%u ", run_once(shard, &removed, &seen));
	} while (removed == FLOW_SWEEP_LIMIT);
	printf("\n");
}

static void fill(unsigned entries, unsigned percent)
{
	unsigned held = 0, each = entries / FLOW_SHARDS;

	for (unsigned shard = 0; shard < FLOW_SHARDS; shard++)
		for (unsigned first = 0; first < each; first += BATCH)
			write_entries(shards[shard], first, each - first < BATCH ? each - first : BATCH, percent);
	for (unsigned shard = 0; !percent && shard < FLOW_SHARDS; shard++) {
		unsigned removed, seen;

		run_once(shard, &removed, &seen);
		held += seen - removed;
	}
	printf("%u\n", percent ? entries : held);
}

int main(int argc, char **argv)
{
	char question[128];
	unsigned number, percent;

	errno = EINVAL;
	if (argc != 3)
		fail("sweep FLOWS PROGRAM");
	open_shards(open_pin(argv[1]));
	program = open_pin(argv[2]);
	while (fgets(question, sizeof(question), stdin)) {
		errno = EINVAL;
		if (sscanf(question, "fill %u %u", &number, &percent) == 2) {
			fill(number, percent);
		} else if (sscanf(question, "sweep %u", &number) == 1) {
			sweep(number);
		} else {
			fail(question);
		}
		fflush(stdout);
	}
	return 0;
}
