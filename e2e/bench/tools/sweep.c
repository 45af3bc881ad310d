/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills the pinned flow table, and runs and times slices of the sweep.
 *
 *	sweep FLOWS PROGRAM
 *
 * Both are pins. Questions on standard input, one a line:
 *
 *	fill ENTRIES PERCENT
 *		writes as many entries of flows that nobody has, so many in a hundred expired, the others with an hour
 *		to live; answers with how many there are then, if none has expired
 *	sweep ENTRIES
 *		sweeps the table in slices of as many; answers with the ns that each took
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"
#include "common.h"

#define BATCH   4096
#define HOUR_NS 3600000000000ULL

static int flows, program;

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

/* Writes `count` entries, numbered from `first` on, so many in a hundred expired. */
static void write_entries(unsigned first, unsigned count, unsigned percent)
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
	attributes.batch.map_fd = flows;
	attributes.batch.count = count;
	attributes.batch.keys = (unsigned long)keys;
	attributes.batch.values = (unsigned long)values;
	if (call(BPF_MAP_UPDATE_BATCH, &attributes))
		fail("update");
}

/* An iterator of the sweep's over the table. */
static int begin_sweep(void)
{
	union bpf_iter_link_info info = {.map = {.map_fd = flows}};
	union bpf_attr link = {}, start = {};
	int iterator;

	link.link_create.prog_fd = program;
	link.link_create.attach_type = BPF_TRACE_ITER;
	link.link_create.iter_info = (unsigned long)&info;
	link.link_create.iter_info_len = sizeof(info.map);
	start.iter_create.link_fd = call(BPF_LINK_CREATE, &link);
	iterator = call(BPF_ITER_CREATE, &start);
	if (iterator < 0)
		fail("sweep");
	close(start.iter_create.link_fd);
	return iterator;
}

/* Sweeps the whole table in slices of so many entries, prints the ns of each if wanted, and returns how many are left.
 */
static unsigned sweep(unsigned size, bool print)
{
	static char met[BATCH];
	int iterator = begin_sweep();
	unsigned left = 0;
	ssize_t count;

	if (size > sizeof(met))
		fail("slice");
	do {
		unsigned long long began = now_ns();

		count = read(iterator, met, size);
		if (count < 0)
			fail("sweep");
		if (print)
			printf("%llu ", now_ns() - began);
		for (ssize_t i = 0; i < count; i++)
			left += !met[i];
	} while (count);
	close(iterator);
	return left;
}

static void fill(unsigned entries, unsigned percent)
{
	for (unsigned first = 0; first < entries; first += BATCH)
		write_entries(first, entries - first < BATCH ? entries - first : BATCH, percent);
	printf("%u\n", percent ? entries : sweep(BATCH, false));
}

int main(int argc, char **argv)
{
	char question[128];
	unsigned number, percent;

	errno = EINVAL;
	if (argc != 3)
		fail("sweep FLOWS PROGRAM");
	flows = open_pin(argv[1]);
	program = open_pin(argv[2]);
	while (fgets(question, sizeof(question), stdin)) {
		errno = EINVAL;
		if (sscanf(question, "fill %u %u", &number, &percent) == 2) {
			fill(number, percent);
		} else if (sscanf(question, "sweep %u", &number) == 1) {
			sweep(number, true);
			printf("\n");
		} else {
			fail(question);
		}
		fflush(stdout);
	}
	return 0;
}
