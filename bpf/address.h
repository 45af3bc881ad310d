/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Addresses and tuples: the one form for both families. */
#ifndef CALICO_EBPF_ADDRESS_H
#define CALICO_EBPF_ADDRESS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#ifndef AF_INET
#define AF_INET  2
#define AF_INET6 10
#endif

#define V4_MARK bpf_htonl(0x0000ffff) /* third word of a v4-mapped address */

static __always_inline struct address address_v4(__be32 v4_be)
{
	return (struct address){{0, 0, V4_MARK, v4_be}};
}

static __always_inline bool is_v4(const struct address *address)
{
	return address->word_be[2] == V4_MARK && !address->word_be[1] && !address->word_be[0];
}

static __always_inline bool is_unspecified(const struct address *address)
{
	return !(address->word_be[0] | address->word_be[1] | address->word_be[2] | address->word_be[3]);
}

/* Comparisons add up differences in place of branching: the verifier would follow every branch. */
static __always_inline __u32 address_mismatch(const struct address *a, const struct address *b)
{
	return (a->word_be[0] ^ b->word_be[0]) | (a->word_be[1] ^ b->word_be[1]) | (a->word_be[2] ^ b->word_be[2]) |
	       (a->word_be[3] ^ b->word_be[3]);
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return !address_mismatch(a, b);
}

static __always_inline __u32 tuple_mismatch(const struct tuple *a, const struct tuple *b)
{
	return address_mismatch(&a->saddr, &b->saddr) | address_mismatch(&a->daddr, &b->daddr) |
	       (a->sport_be ^ b->sport_be) | (a->dport_be ^ b->dport_be) | (a->protocol ^ b->protocol);
}

static __always_inline bool same_tuple(const struct tuple *a, const struct tuple *b)
{
	return !tuple_mismatch(a, b);
}

/* The tuple of a packet that goes the other way. */
static __always_inline struct tuple reverse(const struct tuple *tuple)
{
	return (struct tuple){
		.saddr = tuple->daddr,
		.daddr = tuple->saddr,
		.sport_be = tuple->dport_be,
		.dport_be = tuple->sport_be,
		.protocol = tuple->protocol,
	};
}

static __always_inline bool loopback(const struct address *address)
{
	if (is_v4(address))
		return bpf_ntohl(address->word_be[3]) >> 24 == 127;
	return !(address->word_be[0] | address->word_be[1] | address->word_be[2]) &&
	       address->word_be[3] == bpf_htonl(1);
}

/* IPv4 multicast, broadcast and link-local; IPv6 multicast, link-local and unspecified: never routed by us. */
static __always_inline bool link_scoped(const struct address *address)
{
	__u32 top = bpf_ntohl(address->word_be[0]);
	__u32 v4 = bpf_ntohl(address->word_be[3]);

	if (is_v4(address))
		return v4 >> 28 >= 0xe || v4 >> 16 == 0xa9fe || !v4;
	return top >> 24 == 0xff || top >> 22 == 0xfe80 >> 6 || is_unspecified(address);
}

/*
 * Addresses under which nothing goes further than a pod's own link. IPv4's link-local ones are not among them: a route
 * may lead to a cloud's metadata server, or the host itself have one.
 */
static __always_inline bool stays_on_link(const struct address *address)
{
	const bool link_local_v4 = is_v4(address) && bpf_ntohl(address->word_be[3]) >> 16 == 0xa9fe;

	return link_scoped(address) && !link_local_v4;
}

/* What to ask the kernel's routes; `from`: NULL, of no matter. */
static __always_inline struct bpf_fib_lookup route_between(const struct address *from, const struct address *to)
{
	struct bpf_fib_lookup route = {.family = is_v4(to) ? AF_INET : AF_INET6};

	if (is_v4(to)) {
		route.ipv4_dst = to->word_be[3];
		if (from)
			route.ipv4_src = from->word_be[3];
	} else {
		__builtin_memcpy(route.ipv6_dst, to, sizeof(*to));
		if (from)
			__builtin_memcpy(route.ipv6_src, from, sizeof(*from));
	}
	return route;
}

#endif
