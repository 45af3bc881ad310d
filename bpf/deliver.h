/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The last step: to a pod of this node by bpf_redirect_peer(), to another node by bpf_redirect_neigh() or into the
 * overlay, and to the host's stack with the rest. What is redirected crosses neither the stack nor netfilter.
 */
#ifndef CALICO_EBPF_DELIVER_H
#define CALICO_EBPF_DELIVER_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "device.h"
#include "flow.h"
#include "owner.h"
#include "rewrite.h"
#include "route.h"

/*
 * The overlay device of every node has the same address: a frame in the tunnel is always for who takes it out. Its
 * source must be another one: the kernel takes a frame from the device's own address for a loop, and drops it.
 */
static const __u8 overlay_mac[ETH_ALEN] = {0x02, 0xce, 0, 0, 0, 1};
static const __u8 overlay_source_mac[ETH_ALEN] = {0x02, 0xce, 0, 0, 0, 2};

#define OVERLAY_VNI  206 /* pods' packets */
#define HANDOVER_VNI 207 /* outside clients' packets on their way to the backend's node, and the answers to them */
#define OVERLAY_TTL  64

/* A tunnel's key without what 5.18 has added, which no earlier kernel takes. */
#define TUNNEL_KEY_SIZE __builtin_offsetof(struct bpf_tunnel_key, local_ipv4)

/* Makes a packet one for the overlay device: its frame, and by its metadata where the tunnel ends. */
static __always_inline int enter_tunnel(struct __sk_buff *skb, const struct address *end, __u32 vni)
{
	struct bpf_tunnel_key key = {.tunnel_id = vni, .tunnel_ttl = OVERLAY_TTL};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (is_v4(end)) {
		key.remote_ipv4 = bpf_ntohl(end->word_be[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, end, sizeof(key.remote_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (rewrite_macs(skb, overlay_mac, overlay_source_mac))
		return -DROP_REWRITE_FAILED;
	return bpf_skb_set_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, flags) ? -DROP_REWRITE_FAILED : 0;
}

static __always_inline int send_to_overlay(struct __sk_buff *skb, __u32 ifindex, const struct address *end, __u32 vni)
{
	int error = enter_tunnel(skb, end, vni);

	return error ? error : bpf_redirect(ifindex, 0);
}

static __always_inline int send_to_node(struct __sk_buff *skb, __u32 ifindex, const struct address *node)
{
	struct bpf_redir_neigh next_hop = {.nh_family = AF_INET};

	if (is_v4(node)) {
		next_hop.ipv4_nh = node->word_be[3];
	} else {
		next_hop.nh_family = AF_INET6;
		__builtin_memcpy(next_hop.ipv6_nh, node, sizeof(next_hop.ipv6_nh));
	}
	return bpf_redirect_neigh(ifindex, &next_hop, sizeof(next_hop), 0);
}

/* Sends a packet that is as it should be by a way other than WAY_DESTINATION. Returns a verdict or a drop reason. */
static __noinline int send_by_way(struct __sk_buff *skb, const struct way *way)
{
	struct address end;

	__builtin_memcpy(&end, way->end, sizeof(end));
	skb->mark = config.mark;
	switch (way->kind) {
	case WAY_NODE:
		return send_to_node(skb, way->ifindex, &end);
	case WAY_TUNNEL:
		return send_to_overlay(skb, way->ifindex, &end, HANDOVER_VNI);
	case WAY_MAC:
		if (rewrite_macs(skb, way->end, way->end + ETH_ALEN))
			return -DROP_REWRITE_FAILED;
		return bpf_redirect(way->ifindex, 0);
	case WAY_HOST:
		if (rewrite_macs(skb, way->end, way->end + ETH_ALEN))
			return -DROP_REWRITE_FAILED;
		return bpf_redirect(way->ifindex, BPF_F_INGRESS);
	default:
		return bpf_redirect_neigh(way->ifindex, NULL, 0, 0);
	}
}

static __always_inline int send_to_remote(struct __sk_buff *skb, const struct remote *remote)
{
	skb->mark = config.mark;
	if (remote->flags & REMOTE_OVERLAY)
		return send_to_overlay(skb, remote->overlay_ifindex, &remote->node, OVERLAY_VNI);
	return send_to_node(skb, remote->ifindex, &remote->next_hop);
}

/* Into a pod of this node. Only from ingress: bpf_redirect_peer() works nowhere else. */
static __always_inline int send_to_pod(struct __sk_buff *skb, const struct pod *pod)
{
	int error = rewrite_macs(skb, pod->pod_mac, pod->host_mac);

	return error ? error : bpf_redirect_peer(pod->ifindex, 0);
}

/*
 * Whether a connection leads to a pod of this node that is gone. What only begins is the host's stack's: it says that
 * the pod's address is unreachable, by the route of this node's pods, by which it is known here as well.
 */
static __always_inline bool pod_is_gone(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	return has_flow(packet) && in_mid_stream(packet) && unreachable(skb, &to->saddr, &to->daddr);
}

/* As fits_on_its_way(), of a packet that is not small. Who cuts is the kernel: IPv4 tunnels' packets, and no others. */
static __noinline int large_fits(struct __sk_buff *skb, struct packet *packet, const struct remote *remote,
				 const struct way *way)
{
	bool tunnel = remote ? remote->flags & REMOTE_OVERLAY : way->kind == WAY_TUNNEL;
	__u32 ifindex = way->ifindex;
	const struct device *device;
	struct address end;

	if (remote) {
		end = remote->node;
		ifindex = tunnel ? remote->overlay_ifindex : remote->ifindex;
	} else {
		__builtin_memcpy(&end, way->end, sizeof(end));
	}
	device = device_at(ifindex);
	if (!device || size_on_link(skb, packet) <= device->mtu)
		return 0;
	if (!may_be_cut(skb, packet))
		packet->mtu = device->mtu;
	else if (tunnel && is_v4(&end))
		return 0;
	return -DROP_TOO_BIG;
}

/* Whether the way to a remote, or, NULL, another way can take a packet as it came in. Returns 0 or -DROP_TOO_BIG. */
static __always_inline int fits_on_its_way(struct __sk_buff *skb, struct packet *packet, const struct remote *remote,
					   const struct way *way)
{
	return is_small(skb) ? 0 : large_fits(skb, packet, remote, way);
}

/*
 * Sends a packet that came in as packet->tuple on its way as `to`. What cannot go on is left as it came: its sender is
 * told about that. `else_gone`: an address that is neither a pod's nor a node's is that of a pod that is gone, whatever
 * the routes say. Returns a verdict, or a negated drop reason.
 */
static __noinline int deliver(struct __sk_buff *skb, struct packet *packet, const struct tuple *to,
			      const struct way *way, bool else_gone)
{
	const struct pod *pod = NULL;
	const struct remote *remote = NULL;
	int error;

	if (way->kind == WAY_DESTINATION) {
		pod = pod_at(&to->daddr);
		if (!pod)
			remote = remote_at(&to->daddr);
		if (remote && remote->flags & REMOTE_SERVICES)
			return -DROP_NO_SERVICE;
		if (!pod && !remote && !own_address(&to->daddr) && (else_gone || pod_is_gone(skb, packet, to)))
			return -DROP_NO_POD;
	}
	if (way->kind == WAY_HOST || (way->kind == WAY_DESTINATION && !pod && !remote)) {
		/* the host's stack counts the hop itself */
		error = rewrite(skb, packet, to);
		if (error)
			return error;
		return way->kind == WAY_HOST ? send_by_way(skb, way) : PASS;
	}
	if (packet->ttl <= 1)
		return -DROP_TTL_EXPIRED;
	error = pod ? 0 : fits_on_its_way(skb, packet, remote, way); /* a pod takes what came this far */
	if (!error)
		error = rewrite(skb, packet, to);
	if (!error)
		error = rewrite_ttl(skb, packet);
	if (error)
		return error;
	if (pod)
		return send_to_pod(skb, pod);
	return remote ? send_to_remote(skb, remote) : send_by_way(skb, way);
}

#endif
