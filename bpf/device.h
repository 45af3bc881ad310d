/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The devices by which packets leave this node: what they take, and under which address this node speaks. */
#ifndef CALICO_EBPF_DEVICE_H
#define CALICO_EBPF_DEVICE_H

#include <linux/bpf.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "parse.h"

/* IPv6's smallest MTU (RFC 8200, 5). Of a packet that is no larger nobody asks whether it fits; an IPv4 link that takes
 * less drops it. */
#define SMALLEST_MTU 1280

#define POD_LINKS 0 /* in place of a device index */

static __always_inline bool is_small(const struct __sk_buff *skb)
{
	return skb->len <= ETH_HLEN + SMALLEST_MTU;
}

static __always_inline const struct device *device_at(__u32 ifindex)
{
	struct device_key key = {.ifindex = ifindex};

	return bpf_map_lookup_elem(&devices, &key);
}

/* Whether a packet came in by a device beside the underlay. */
static __always_inline bool by_another_device(const struct __sk_buff *skb)
{
	const struct device *device = device_at(skb->ifindex);

	return device && device->flags & DEVICE_OTHER;
}

/* This node's address in a packet's family where it came in, else its InternalIP; NULL: it has none. */
static __always_inline const struct address *own_address_there(struct __sk_buff *skb, bool v6)
{
	const struct device *device = device_at(skb->ifindex);

	if (!device || is_unspecified(v6 ? &device->v6 : &device->v4))
		device = device_at(POD_LINKS);
	if (!device || is_unspecified(v6 ? &device->v6 : &device->v4))
		return NULL;
	return v6 ? &device->v6 : &device->v4;
}

/* How large a packet is, or what it will be cut into by the device: bytes from the IP header on. */
static __always_inline __u32 size_on_link(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 headers = packet->l4_offset - ETH_HLEN;
	__u8 data_offset;

	if (!skb->gso_size)
		return packet->end - ETH_HLEN; /* without what a link layer has put behind it */
	if (packet->tuple.protocol == IPPROTO_UDP)
		return headers + sizeof(struct udphdr) + skb->gso_size;
	/* SCTP's chunks are cut where its sender has said, which knows the path */
	if (packet->tuple.protocol != IPPROTO_TCP ||
	    bpf_skb_load_bytes(skb, packet->l4_offset + TCP_FLAGS_OFFSET - 1, &data_offset, sizeof(data_offset)))
		return 0;
	if (packet->is_v6)
		headers = sizeof(struct ipv6hdr); /* one of 64 KB and more has a header that its parts have not */
	return headers + (data_offset >> 4) * 4 + skb->gso_size;
}

/* Whether routers may cut a packet up: IPv4, unless its sender says no. */
static __always_inline bool may_be_cut(struct __sk_buff *skb, const struct packet *packet)
{
	__be16 fragment_be;

	return !packet->is_v6 &&
	       !bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, frag_off), &fragment_be,
				   sizeof(fragment_be)) &&
	       !(fragment_be & bpf_htons(IPV4_DO_NOT_FRAGMENT));
}

#endif
