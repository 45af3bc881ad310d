/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Watches the pinned Service maps from the kernel's side, by bpf(2).
 *
 *	watch MAPS SERVICES ENDPOINTS SERVICE-ADDRESS PORT ENDPOINT-ADDRESS TARGET-PORT
 *
 * MAPS is the directory of the pins. SERVICES Services over TCP and IPv4 are expected at consecutive addresses from
 * SERVICE-ADDRESS on, each with ENDPOINTS endpoints at addresses of their own, consecutive from ENDPOINT-ADDRESS on.
 * Questions on standard input, one a line:
 *
 *	all			waits until the maps hold everything, and answers with the time then, CLOCK_MONOTONIC in
 *ns change FROM TO N ADDRESS	renames FROM to TO, polls until Service N leads to ADDRESS, and answers with the ns
 *between
 *
 * It looks each entry up, and goes on to the next only when it is right; it sleeps for a millisecond when it is not,
 * except that after a rename it polls without a pause.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"
#include "common.h"

#define CHANGE_TIMEOUT_NS 5000000000LL

static struct {
	unsigned services, endpoints, service_address, endpoint_address;
	int port, target_port;
} plan;

static int frontends, slots, backends;

static void pause_1ms(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Opens a pinned map, which may not be there yet. */
static int open_map(const char *directory, const char *name)
{
	char path[512];
	union bpf_attr attributes = {.pathname = (unsigned long)path};
	int map;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	while ((map = syscall(SYS_bpf, BPF_OBJ_GET, &attributes, sizeof(attributes))) < 0) {
		if (errno != ENOENT)
			fail(path);
		pause_1ms();
	}
	return map;
}

/* Returns 0, or -1 where the key has no entry. */
static int lookup(int map, const void *key, void *value)
{
	union bpf_attr attributes = {.map_fd = map, .key = (unsigned long)key, .value = (unsigned long)value};

	return syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &attributes, sizeof(attributes)) ? -1 : 0;
}

static struct address mapped(unsigned address)
{
	return (struct address){{0, 0, htonl(0xffff), htonl(address)}};
}

static int find_frontend(unsigned service, struct frontend *frontend)
{
	struct frontend_key key = {.address = mapped(plan.service_address + service),
				   .port_be = htons(plan.port),
				   .protocol = IPPROTO_TCP};

	return lookup(frontends, &key, frontend);
}

/* The IPv4 address behind a slot, 0 where there is none or it is not at the target port. */
static unsigned find_backend(unsigned service_id, unsigned index)
{
	struct slot_key key = {.service_id = service_id, .slot = index};
	struct slot slot;
	struct backend_key id;
	struct backend backend;

	if (lookup(slots, &key, &slot))
		return 0;
	id.backend_id = slot.backend_id;
	if (lookup(backends, &id, &backend) || backend.port_be != htons(plan.target_port))
		return 0;
	return ntohl(backend.address.word_be[3]);
}

/* Whether a Service leads to each of its endpoints. */
static int is_held(unsigned service)
{
	unsigned first = plan.endpoint_address + service * plan.endpoints;
	unsigned long long seen = 0;
	struct frontend frontend;

	if (find_frontend(service, &frontend) || frontend.slot_count != plan.endpoints)
		return 0;
	for (unsigned i = 0; i < plan.endpoints; i++) {
		unsigned place = find_backend(frontend.service_id, i) - first;

		if (place >= plan.endpoints)
			return 0;
		seen |= 1ULL << place;
	}
	return seen == (1ULL << plan.endpoints) - 1;
}

static void wait_all(void)
{
	for (unsigned service = 0; service < plan.services; service++)
		while (!is_held(service))
			pause_1ms();
	printf("%lld\n", now_ns());
}

static void change(const char *from, const char *to, unsigned service, unsigned address)
{
	long long began_ns = now_ns();
	struct frontend frontend;

	if (rename(from, to))
		fail(from);
	while (now_ns() - began_ns < CHANGE_TIMEOUT_NS) {
		if (find_frontend(service, &frontend))
			continue;
		for (unsigned i = 0; i < frontend.slot_count; i++) {
			if (find_backend(frontend.service_id, i) == address) {
				printf("%lld\n", now_ns() - began_ns);
				return;
			}
		}
	}
	errno = ETIMEDOUT;
	fail(to);
}

static unsigned address_of(const char *text)
{
	struct in_addr address;

	errno = EINVAL;
	if (!inet_aton(text, &address))
		fail(text);
	return ntohl(address.s_addr);
}

int main(int argc, char **argv)
{
	char question[2048], from[512], to[512], address[64];
	unsigned service;

	errno = EINVAL;
	if (argc != 8)
		fail("watch MAPS SERVICES ENDPOINTS SERVICE-ADDRESS PORT ENDPOINT-ADDRESS TARGET-PORT");
	plan.services = atoi(argv[2]);
	plan.endpoints = atoi(argv[3]);
	plan.service_address = address_of(argv[4]);
	plan.port = atoi(argv[5]);
	plan.endpoint_address = address_of(argv[6]);
	plan.target_port = atoi(argv[7]);
	frontends = open_map(argv[1], "frontends");
	slots = open_map(argv[1], "slots");
	backends = open_map(argv[1], "backends");
	while (fgets(question, sizeof(question), stdin)) {
		if (!strcmp(question, "all\n"))
			wait_all();
		else if (sscanf(question, "change %511s %511s %u %63s", from, to, &service, address) == 4)
			change(from, to, service, address_of(address));
		else
			fail(question);
		fflush(stdout);
	}
	return 0;
}
