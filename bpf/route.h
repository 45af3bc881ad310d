/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel's own routes say. */
#ifndef CALICO_EBPF_ROUTE_H
#define CALICO_EBPF_ROUTE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "address.h"

#ifndef AF_INET
#define AF_INET  2
#define AF_INET6 10
#endif

/* The device by which the kernel routes what it forwards between two addresses; 0: it does not. */
static __noinline __u32 route_out(struct __sk_buff *skb, const struct address *from, const struct address *to)
{
	struct bpf_fib_lookup route = {.family = AF_INET, .ifindex = skb->ifindex};

	if (is_v4(to)) {
		route.ipv4_src = from->word_be[3];
		route.ipv4_dst = to->word_be[3];
	} else {
		route.family = AF_INET6;
		__builtin_memcpy(route.ipv6_src, from, sizeof(route.ipv6_src));
		__builtin_memcpy(route.ipv6_dst, to, sizeof(route.ipv6_dst));
	}
	switch (bpf_fib_lookup(skb, &route, sizeof(route), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED: /* this packet would be; it is asked for others */
		return route.ifindex;
	default:
		return 0;
	}
}

/*
 * The way of the answers to a client's packet: straight to the client, by the route from the address that it talks to.
 * With several devices that need not be the one by which the packet came, which is taken where there is no route.
 */
static __always_inline struct way way_to_client(struct __sk_buff *skb, const struct tuple *asked)
{
	__u32 ifindex = route_out(skb, &asked->daddr, &asked->saddr);

	return (struct way){.ifindex = ifindex ? ifindex : skb->ifindex, .kind = WAY_ROUTE};
}

#endif
