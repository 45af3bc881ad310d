/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel's own routes say. */
#ifndef CALICO_EBPF_ROUTE_H
#define CALICO_EBPF_ROUTE_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "address.h"

/* What the kernel's routes say of what it forwards between two addresses: BPF_FIB_LKUP_RET_*, and the device. */
static __always_inline int look_up_route(struct __sk_buff *skb, const struct address *from, const struct address *to,
					 __u32 *ifindex)
{
	struct bpf_fib_lookup route = route_between(from, to);
	int result;

	route.ifindex = skb->ifindex;
	result = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	*ifindex = route.ifindex;
	return result;
}

/* Whether what the kernel's routes say is that a packet leaves by a device. */
static __always_inline bool leads_out(int route)
{
	return route == BPF_FIB_LKUP_RET_SUCCESS || route == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       route == BPF_FIB_LKUP_RET_FRAG_NEEDED; /* this packet would be cut; it is asked for others */
}

/* The device by which the kernel routes what it forwards between two addresses; 0: it does not. */
static __noinline __u32 route_out(struct __sk_buff *skb, const struct address *from, const struct address *to)
{
	__u32 ifindex;

	return leads_out(look_up_route(skb, from, to, &ifindex)) ? ifindex : 0;
}

/* Whether there is a route, but one that says that nobody is there. */
static __noinline bool unreachable(struct __sk_buff *skb, const struct address *from, const struct address *to)
{
	__u32 ifindex;

	return look_up_route(skb, from, to, &ifindex) == BPF_FIB_LKUP_RET_UNREACHABLE;
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

/* How an outside client's packet is handed over to the node of its backend, at whose address `remote` is. */
static __always_inline struct way way_to_backends_node(const struct remote *remote)
{
	struct way way = {.ifindex = remote->ifindex, .kind = WAY_NODE};

	if (remote->flags & REMOTE_TUNNEL_HANDOVER)
		way = (struct way){.ifindex = remote->overlay_ifindex, .kind = WAY_TUNNEL};
	__builtin_memcpy(way.end, &remote->node, sizeof(way.end));
	return way;
}

/* Whether answers that leave by this way go to the node that has handed over what they answer, which translates them.
 */
static __always_inline bool leads_to_entry_node(const struct way *way)
{
	return way->kind == WAY_MAC || way->kind == WAY_TUNNEL;
}

/* How an answer gets into the host's stack: by the device by which the host's packet, in `skb`, leaves. */
static __always_inline struct way way_to_host(struct __sk_buff *skb)
{
	struct way way = {.ifindex = skb->ifindex, .kind = WAY_HOST};
	const struct ethhdr *ethernet = header(skb, 0, sizeof(*ethernet));

	if (!ethernet)
		return (struct way){};
	__builtin_memcpy(way.end, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(way.end + ETH_ALEN, ethernet->h_dest, ETH_ALEN);
	return way;
}

#endif
