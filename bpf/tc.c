/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The TC programs, one per hook, named from the host's point of view:
 *
 *   pod --from_pod--> [ node ] --to_netdev---> underlay      [ node ] --to_overlay---> overlay device
 *   pod <--to_pod---- [ node ] <--from_netdev- underlay      [ node ] <--from_overlay- overlay device
 *
 * Redirects bypass to_pod: it sees what the host's own stack sends.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "deliver.h"
#include "refuse.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The verdict of what the steps returned, with the drop counted. */
static __always_inline int verdict(const struct __sk_buff *skb, int result)
{
	return result < 0 && result != PASS ? drop(skb, result) : result;
}

/* A packet without a backend is refused: the refusal goes back into the pod. It is counted as a drop all the same. */
static __always_inline int refuse_to_pod(struct __sk_buff *skb, const struct packet *packet, int reason)
{
	drop(skb, reason);
	if (refuse(skb, packet, reason))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(skb->ifindex, 0);
}

SEC("classifier")
int from_pod(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct tuple to;
	const struct pod *pod;
	int result = parse(skb, &packet);

	if (result)
		return result == PARSE_NOT_IP ? PASS : drop(skb, result);
	if (packet.is_v6 && link_scoped(&packet.tuple.saddr) && link_scoped(&packet.tuple.daddr))
		return PASS; /* neighbour discovery and the like: of this link alone, and the stack keeps it there */
	pod = pod_at(&packet.tuple.saddr);
	if (!pod || pod->ifindex != skb->ifindex)
		return drop(skb, -DROP_SPOOFED);
	if (link_scoped(&packet.tuple.daddr))
		return PASS;
	result = flow_track(&packet, &to, true);
	if (result == -DROP_NO_BACKEND || result == -DROP_NO_FLOW)
		return refuse_to_pod(skb, &packet, result);
	return verdict(skb, result ? result : deliver(skb, &packet, &to));
}

SEC("classifier")
int to_pod(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct tuple to;
	int result = parse(skb, &packet);

	if (result)
		return result == PARSE_NOT_IP ? PASS : drop(skb, result);
	if (link_scoped(&packet.tuple.saddr) || link_scoped(&packet.tuple.daddr))
		return PASS;
	result = flow_track(&packet, &to, false);
	if (!result)
		result = rewrite(skb, &packet, &to);
	return verdict(skb, result ? result : PASS);
}

/* What comes from other nodes and from outside: for a pod of this node, or for the host's stack. */
static __always_inline int from_outside(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct tuple to;
	const struct pod *pod;
	int result = parse(skb, &packet);

	if (result)
		return PASS; /* the host's stack judges what is not for our pods, broken packets included */
	pod = pod_at(&packet.tuple.daddr);
	if (!pod)
		return PASS;
	result = flow_track(&packet, &to, false);
	/* what is translated here is the sender's side: the pod stays */
	return verdict(skb, result ? result : deliver_by(skb, &packet, &to, pod));
}

SEC("classifier")
int from_netdev(struct __sk_buff *skb)
{
	/* a bridge floods, and a capture sees, frames that are for others */
	return skb->pkt_type == 0 /* PACKET_HOST */ ? from_outside(skb) : PASS;
}

/* Whether a packet came out of a tunnel of ours: from a node, and of the pods' network. */
static __always_inline bool from_a_node(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key;
	struct address sender;

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		sender = address_v4(bpf_htonl(key.remote_ipv4));
	else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
		__builtin_memcpy(&sender, key.remote_ipv6, sizeof(sender));
	else
		return true; /* out of no tunnel at all: the device lets none of these in, only a test run does */
	return key.tunnel_id == OVERLAY_VNI && remote_at(&sender);
}

SEC("classifier")
int from_overlay(struct __sk_buff *skb)
{
	return from_a_node(skb) ? from_outside(skb) : drop(skb, -DROP_NOT_A_NODE);
}

/*
 * A host's process that talks to a Service was translated at connect or sendmsg. What still carries a Service's address
 * here has no backend, and is refused back into the host's stack; or was sent past these hooks, and is dropped.
 */
SEC("classifier")
int to_netdev(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct frontend_key key = {};
	const struct frontend *frontend;
	int reason = -DROP_UNTRANSLATED;

	if (skb->mark == config.mark || parse(skb, &packet))
		return PASS;
	key.address = packet.tuple.daddr;
	key.port_be = packet.tuple.dport_be;
	key.protocol = packet.tuple.protocol;
	frontend = bpf_map_lookup_elem(&frontends, &key);
	if (!frontend)
		return PASS;
	if (!frontend->slot_count)
		reason = -DROP_NO_BACKEND;
	drop(skb, reason);
	if (refuse(skb, &packet, reason))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* The host's stack routes to other nodes' pods by this device, but knows nothing of tunnels. */
SEC("classifier")
int to_overlay(struct __sk_buff *skb)
{
	struct packet packet = {};
	const struct remote *remote;
	int result;

	if (skb->mark == config.mark || parse(skb, &packet))
		return PASS; /* sent by us, with its tunnel set */
	if (link_scoped(&packet.tuple.daddr))
		return TC_ACT_SHOT; /* the device's own multicast, which has no far end and is nobody's loss: not
				       counted */
	remote = remote_at(&packet.tuple.daddr);
	result = remote ? enter_tunnel(skb, remote) : -DROP_NO_REMOTE;
	return verdict(skb, result ? result : PASS);
}
