/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The last step: to a pod of this node by bpf_redirect_peer(), to another node by bpf_redirect_neigh() or into the
 * overlay, and to the host's stack with the rest. What is redirected crosses neither the stack nor netfilter.
 */
#ifndef CALICO_EBPF_DELIVER_H
#define CALICO_EBPF_DELIVER_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "flow.h"
#include "rewrite.h"

#ifndef AF_INET
#define AF_INET  2
#define AF_INET6 10
#endif

/*
 * The overlay device of every node has the same address: a frame in the tunnel is always for who takes it out. Its
 * source must be another one: the kernel takes a frame from the device's own address for a loop, and drops it.
 */
static const __u8 overlay_mac[ETH_ALEN] = {0x02, 0xce, 0, 0, 0, 1};
static const __u8 overlay_source_mac[ETH_ALEN] = {0x02, 0xce, 0, 0, 0, 2};

#define OVERLAY_VNI 206
#define OVERLAY_TTL 64

/* Makes a packet one for the overlay device: its frame, and by its metadata where the tunnel ends. */
static __always_inline int enter_tunnel(struct __sk_buff *skb, const struct remote *remote)
{
	struct bpf_tunnel_key key = {.tunnel_id = OVERLAY_VNI, .tunnel_ttl = OVERLAY_TTL};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (remote->next_hop.word_be[2] == V4_MARK && !remote->next_hop.word_be[0]) {
		key.remote_ipv4 = bpf_ntohl(remote->next_hop.word_be[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, &remote->next_hop, sizeof(key.remote_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (rewrite_macs(skb, overlay_mac, overlay_source_mac))
		return -DROP_REWRITE_FAILED;
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags) ? -DROP_REWRITE_FAILED : 0;
}

static __always_inline int deliver_to_overlay(struct __sk_buff *skb, const struct remote *remote)
{
	int error = enter_tunnel(skb, remote);

	return error ? error : bpf_redirect(remote->ifindex, 0);
}

static __always_inline int deliver_to_node(struct __sk_buff *skb, const struct remote *remote)
{
	struct bpf_redir_neigh next_hop = {.nh_family = AF_INET};

	if (remote->next_hop.word_be[2] == V4_MARK && !remote->next_hop.word_be[0]) {
		next_hop.ipv4_nh = remote->next_hop.word_be[3];
	} else {
		next_hop.nh_family = AF_INET6;
		__builtin_memcpy(next_hop.ipv6_nh, &remote->next_hop, sizeof(next_hop.ipv6_nh));
	}
	return bpf_redirect_neigh(remote->ifindex, &next_hop, sizeof(next_hop), 0);
}

/* To a pod of this node. Only from ingress: bpf_redirect_peer() works nowhere else. */
static __always_inline int deliver_to_pod(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
					  const struct pod *pod)
{
	int error = rewrite(skb, packet, to);

	if (!error)
		error = rewrite_ttl(skb, packet);
	if (!error)
		error = rewrite_macs(skb, pod->pod_mac, pod->host_mac);
	return error ? error : bpf_redirect_peer(pod->ifindex, 0);
}

static __always_inline int deliver_to_remote(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
					     const struct remote *remote)
{
	int error = rewrite(skb, packet, to);

	if (!error)
		error = rewrite_ttl(skb, packet);
	if (error)
		return error;
	skb->mark = config.mark;
	return remote->flags & REMOTE_OVERLAY ? deliver_to_overlay(skb, remote) : deliver_to_node(skb, remote);
}

static __always_inline const struct pod *pod_at(const struct address *address)
{
	return bpf_map_lookup_elem(&pods, address);
}

static __always_inline const struct remote *remote_at(const struct address *address)
{
	struct remote_key key = {.prefix_bits = 128, .address = *address};

	return bpf_map_lookup_elem(&remotes, &key);
}

/*
 * Sends a packet that came in as packet->tuple on its way as `to`. `pod` is the pod at to->daddr, if any.
 * Returns a verdict, or a negated drop reason.
 */
static __always_inline int deliver_by(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
				      const struct pod *pod)
{
	const struct remote *remote;
	int error;

	if (pod)
		return deliver_to_pod(skb, packet, to, pod);
	remote = remote_at(&to->daddr);
	if (remote)
		return deliver_to_remote(skb, packet, to, remote);
	error = rewrite(skb, packet, to);
	return error ? error : PASS;
}

static __always_inline int deliver(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	return deliver_by(skb, packet, to, pod_at(&to->daddr));
}

#endif
