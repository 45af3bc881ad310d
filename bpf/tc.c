/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The TC programs, one per hook, named from the host's point of view:
 *
 *   pod --from_pod--> [ node ] --to_netdev---> underlay      [ node ] --to_overlay---> overlay device
 *   pod <--to_pod---- [ node ] <--from_netdev- underlay      [ node ] <--from_overlay- overlay device
 *
 * Redirects bypass to_pod, but for those of to_netdev: it sees what the host's own stack sends. From other devices of
 * the node's (a second network, other containers) clients come to Services by from_other; to_netdev stands there, too.
 * At devices without a link layer, of the underlay or not, are from_l3 and to_l3 in their place.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "deliver.h"
#include "deny.h"
#include "refuse.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The verdict of what the steps returned, with the drop counted. */
static __always_inline int verdict(const struct __sk_buff *skb, int result)
{
	return result < 0 && result != PASS ? drop(skb, result) : result;
}

/*
 * Whether the sender gets an answer from here, mostly that it is refused. That a pod is gone ends a connection; else
 * the sender's own patience does.
 */
static __always_inline bool is_answered(const struct packet *packet, int result)
{
	return result == -DROP_NO_BACKEND || result == -DROP_NO_FLOW || result == -DROP_NO_SUCH_PORT ||
	       result == -DROP_UNTRANSLATED || result == ECHO_ASKED || said_on_the_way(result) ||
	       (result == -DROP_NO_POD && in_mid_stream(packet));
}

/*
 * Makes a packet the answer to itself: a refusal, which is counted as a drop all the same, or to an echo.
 * Returns 0; or, where there is none to send, a negated drop reason, counted.
 */
static __always_inline int answer(struct __sk_buff *skb, int result)
{
	int error;

	if (result != ECHO_ASKED) {
		drop(skb, result);
		return refuse(skb, result);
	}
	error = answer_echo(skb);
	if (error)
		drop(skb, error);
	return error;
}

static __always_inline bool to_tunnel(const struct tuple *tuple)
{
	return tuple->protocol == IPPROTO_UDP && tuple->dport_be == bpf_htons(config.overlay_port);
}

/*
 * What becomes of a packet without a frontend, by its destination, which is neither a pod's nor a node's, and has these
 * flags as an address of Services; `vain`: else nobody has it. Returns 0: it goes on, or a negated drop reason.
 */
static __always_inline int unserved(const struct packet *packet, __u32 flags, bool vain)
{
	if (!(flags & FRONTEND_CLUSTER_IP))
		return vain ? -DROP_NO_SERVICE : 0;
	if (is_later(packet))
		return -DROP_FRAGMENT;
	return in_mid_stream(packet) && taking_over() ? -DROP_TAKING_OVER : -DROP_NO_SUCH_PORT;
}

/*
 * Whether what comes in for a load balancer's address would be routed on, and to and fro. Not what the host has by a
 * local route, for health checks, say; nor other protocols, neighbour discovery among them.
 */
static __always_inline bool goes_to_and_fro(struct __sk_buff *skb, const struct packet *packet)
{
	return (has_ports(packet->tuple.protocol) || packet->is_echo) && !node_at(&packet->tuple.daddr) &&
	       route_out(skb, &packet->tuple.saddr, &packet->tuple.daddr);
}

/* The same of a packet that may be for another node or its pods; `come_in`: from outside, not sent by this node. */
static __always_inline int unserved_on_its_way(struct __sk_buff *skb, const struct packet *packet, bool come_in)
{
	const struct remote *remote = remote_at(&packet->tuple.daddr);
	__u32 flags;

	if (of_a_node(remote))
		return 0;
	flags = address_of_service(&packet->tuple.daddr);
	return unserved(packet, flags, remote || (come_in && flags && goes_to_and_fro(skb, packet)));
}

/* As frontend_at. What is met at a loopback address is for the node's own processes, not for who sends to it here. */
static __always_inline const struct frontend *frontend_asked(const struct packet *packet, struct frontend_key *key)
{
	return loopback(&packet->tuple.daddr) ? NULL : frontend_at(&packet->tuple, key);
}

/* Chooses a backend for a new flow's packet. Returns 0, ECHO_ASKED or a negated drop reason. */
static __always_inline int open_service(const struct packet *packet, const struct frontend_key *key,
					enum service_set set, struct opening *opening)
{
	const struct client client = {
		.address = packet->tuple.saddr,
		.asked = packet->tuple.daddr,
		.port_be = packet->tuple.sport_be,
		.begins = !in_mid_stream(packet),
	};
	struct backend_key backend_key = {};
	struct backend backend;
	int result;

	if (packet->is_echo)
		return ECHO_ASKED; /* a frontend of this protocol stands for the address as such */
	result = service_select(key, &client, set, &backend_key, &backend);
	if (result <= SERVICE_NONE)
		return result == SERVICE_NONE ? -DROP_NO_BACKEND : result; /* gone since it was found */
	if (in_mid_stream(packet) && result != SERVICE_AGREED)
		return no_flow();
	opening->backend_id = backend_key.backend_id;
	opening->to.daddr = backend.address;
	opening->to.dport_be = backend.port_be;
	/* A pod that reaches itself must not see its own address as the client's: it sees the Service's. */
	if (same_address(&backend.address, &packet->tuple.saddr))
		opening->to.saddr = packet->tuple.daddr;
	return 0;
}

/*
 * A pod's flow that leaves the cluster by the underlay goes under the node's own address there. One that leaves it
 * otherwise, or cannot, is the host's stack's. Returns 0 or a negated drop reason.
 */
static __always_inline int open_masquerade(struct __sk_buff *skb, const struct packet *packet, struct opening *opening)
{
	const struct remote_key to = {.prefix_bits = 128, .address = opening->to.daddr};
	const struct device *device;
	__u32 ifindex;

	/* Under a node's address a pod could speak for that node in a tunnel. */
	if (!config.masquerade_port_count || to_tunnel(&opening->to) || bpf_map_lookup_elem(&unmasqueraded, &to))
		return 0;
	ifindex = route_out(skb, &packet->tuple.saddr, &opening->to.daddr);
	device = ifindex ? device_at(ifindex) : NULL;
	if (!device || !(device->flags & (packet->is_v6 ? DEVICE_MASQUERADE_V6 : DEVICE_MASQUERADE_V4)))
		return 0;
	opening->to.saddr = packet->is_v6 ? device->v6 : device->v4;
	opening->way = (struct way){.ifindex = ifindex, .kind = WAY_ROUTE};
	opening->masquerade = 1;
	return in_mid_stream(packet) ? no_flow() : 0; /* under another port than before it would be nobody's */
}

static __always_inline int open_from_pod(struct __sk_buff *skb, const struct packet *packet, struct opening *opening)
{
	const struct address *to = &opening->to.daddr;
	const struct frontend *frontend;
	const struct remote *remote;
	struct frontend_key key;
	int result;

	opening->to = packet->tuple;
	opening->flags = FLOW_FROM_HERE;
	frontend = loopback(&packet->tuple.daddr) ? NULL : frontend_for_own(&packet->tuple, &key);
	if (frontend) {
		if (!source_allowed(frontend, &key, &packet->tuple.saddr))
			return -DROP_SOURCE_RANGE;
		result = open_service(packet, &key, set_for_own(frontend), opening);
		if (result)
			return result;
	}
	if (pod_at(to))
		return 0;
	remote = remote_at(to);
	if (of_a_node(remote) || own_address(to))
		return 0;
	result = unserved(packet, address_of_service(to), remote);
	/* A Service's backend may be outside as well: the API server's of many a cluster is. */
	return result ? result : open_masquerade(skb, packet, opening);
}

/* The verdict on a pod's packet: where it is answered, that goes back into the pod. */
static __always_inline int verdict_for_pod(struct __sk_buff *skb, const struct packet *packet, int reason)
{
	if (!is_answered(packet, reason))
		return verdict(skb, reason);
	if (answer(skb, reason))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(skb->ifindex, 0);
}

/* How a pod's packet without a flow goes on, which begins one. Returns 0, PASS, or a negated drop reason. */
static __noinline int begin_from_pod(struct __sk_buff *skb, struct work *work)
{
	int result;

	__builtin_memset(&work->opening, 0, sizeof(work->opening));
	result = open_from_pod(skb, &work->packet, &work->opening);
	return result ? result : flow_create(skb, work);
}

/* How a packet of a flow that is known goes on. */
static __always_inline void follow(struct work *work, const struct flow *flow)
{
	work->opening.to = reverse(&flow->twin);
	work->opening.way = flow->way;
	if (flow->flags & FLOW_HANDED_OVER)
		work->opening.way.kind = WAY_DESTINATION;
}

/* Sends a packet on as it has been found out, by `follow` or a beginning. Returns a verdict or a drop reason. */
static __always_inline int go_on(struct __sk_buff *skb, struct work *work)
{
	return deliver(skb, &work->packet, &work->opening.to, &work->opening.way, false);
}

/* What has no flow goes as it is, by its destination. */
static __always_inline int forward(struct __sk_buff *skb, struct packet *packet)
{
	const struct way way = {};

	return deliver(skb, packet, &packet->tuple, &way, false);
}

/* What a pod sends that has no flow: to a cluster IP it is in vain, whatever it is. */
static __noinline int pass_from_pod(struct __sk_buff *skb, struct packet *packet)
{
	int result = forward(skb, packet);

	if (result != PASS && result != -DROP_NO_SERVICE)
		return result;
	result = unserved(packet, address_of_service(&packet->tuple.daddr), result == -DROP_NO_SERVICE);
	if (!result && may_have_flow(packet) && !own_address(&packet->tuple.daddr))
		result = -DROP_FRAGMENT; /* out of the cluster it would go without masquerade */
	return result ? result : PASS;
}

SEC("classifier")
int from_pod(struct __sk_buff *skb)
{
	struct work *work = new_work();
	const struct packet *packet;
	const struct pod *pod;
	struct flow *flow;
	int result;

	if (!work)
		return TC_ACT_SHOT;
	/* It would leave with its tag, in a VLAN of the pod's choice. Behind a tag of priority may stand another one,
	 * which the host's stack takes out: what it then routes has come past here. */
	if (skb->vlan_present)
		return drop(skb, -DROP_BAD_HEADER);
	packet = &work->packet;
	result = parse(skb, &work->packet);
	if (result)
		return result == PARSE_NOT_IP ? PASS : drop(skb, result);
	if (packet->is_v6 && link_scoped(&packet->tuple.saddr) && link_scoped(&packet->tuple.daddr))
		return PASS; /* neighbour discovery and the like: of this link alone, and the stack keeps it there */
	pod = pod_at(&packet->tuple.saddr);
	if (!pod || pod->ifindex != skb->ifindex)
		return drop(skb, -DROP_SPOOFED);
	if (stays_on_link(&packet->tuple.daddr))
		return PASS;
	if (packet->part)
		know_fragment(&work->packet);
	flow = flow_find(skb, &work->packet, true, false);
	if (flow || begins_flow(packet)) {
		if (flow)
			follow(work, flow);
		else
			result = begin_from_pod(skb, work);
		if (!result)
			result = go_on(skb, work);
	} else {
		result = pass_from_pod(skb, &work->packet);
	}
	return verdict_for_pod(skb, packet, result);
}

static __noinline int begin_to_pod(struct __sk_buff *skb, struct work *work)
{
	int result;

	__builtin_memset(&work->opening, 0, sizeof(work->opening));
	work->opening.to = work->packet.tuple;
	if (is_here(&work->packet.tuple.saddr)) /* else the stack has routed it here */
		work->opening.flags = FLOW_FROM_HERE;
	result = flow_create(skb, work);
	return result ? result : rewrite(skb, &work->packet, &work->opening.to);
}

SEC("classifier")
int to_pod(struct __sk_buff *skb)
{
	struct work *work;
	const struct packet *packet;
	struct flow *flow;
	int result;

	if (skb->mark == config.mark)
		return PASS; /* sent by to_netdev, translated and tracked */
	work = new_work();
	if (!work)
		return TC_ACT_SHOT;
	packet = &work->packet;
	result = parse_known(skb, &work->packet);
	if (result)
		return result == PARSE_NOT_IP ? PASS : drop(skb, result);
	if (stays_on_link(&packet->tuple.saddr) || stays_on_link(&packet->tuple.daddr))
		return PASS;
	flow = flow_find(skb, &work->packet, false, false);
	if (flow) {
		struct tuple to = reverse(&flow->twin);

		result = rewrite(skb, packet, &to);
	} else if (begins_flow(packet)) {
		result = begin_to_pod(skb, work);
	}
	return verdict(skb, result ? result : PASS);
}

/*
 * How a Service's packet from outside leaves this node, its entry, for a backend on another node.
 * Returns 0 or a negated drop reason.
 */
static __always_inline int open_handover(struct __sk_buff *skb, const struct packet *packet,
					 const struct frontend *frontend, struct opening *opening)
{
	const struct remote *remote = remote_at(&opening->to.daddr);

	if (is_here(&opening->to.daddr))
		return 0;
	if (!of_a_node(remote) || remote->flags & REMOTE_NO_HANDOVER)
		return -DROP_NO_HANDOVER;
	opening->way = way_to_backends_node(remote);
	/* With direct return the backend's node must see what the client talks to, and chooses the backend itself. To
	 * who is behind this node, in a network of its own, it knows no way. */
	if (frontend->flags & FRONTEND_DIRECT && !by_another_device(skb)) {
		opening->to = packet->tuple;
		opening->one_way = 1;
	}
	return 0;
}

/* The far end and the network of the tunnel out of which a packet came. Returns 0, or -1: it came out of none. */
static __always_inline int tunnel_of(struct __sk_buff *skb, struct address *end, __u32 *vni)
{
	struct bpf_tunnel_key key;

	if (!bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, 0))
		*end = address_v4(bpf_htonl(key.remote_ipv4));
	else if (!bpf_skb_get_tunnel_key(skb, &key, TUNNEL_KEY_SIZE, BPF_F_TUNINFO_IPV6))
		__builtin_memcpy(end, key.remote_ipv6, sizeof(*end));
	else
		return -1;
	*vni = key.tunnel_id;
	return 0;
}

/* Whether a packet came out of a tunnel of ours: from another node. */
static __noinline bool out_of_a_node(struct __sk_buff *skb)
{
	const struct node *node;
	struct address end;
	__u32 vni;

	if (tunnel_of(skb, &end, &vni))
		return true; /* out of no tunnel at all: to_overlay's refusal, on its way into the host's stack */
	node = bpf_map_lookup_elem(&nodes, &end);
	return (vni == OVERLAY_VNI || vni == HANDOVER_VNI) && node && !(node->flags & (NODE_OWN | NODE_MAPPED));
}

/* The way back to who sent a packet, whoever that is; left zero where an answer is not to go that way. */
static __noinline int find_sender(struct __sk_buff *skb, struct way *sender, bool overlay)
{
	const struct ethhdr *ethernet;
	struct address end;
	__u32 vni;

	*sender = (struct way){};
	if (overlay) {
		if (tunnel_of(skb, &end, &vni) || vni != HANDOVER_VNI)
			return 0;
		sender->kind = WAY_TUNNEL;
		__builtin_memcpy(sender->end, &end, sizeof(sender->end));
	} else {
		ethernet = header(skb, 0, sizeof(*ethernet));
		if (!ethernet)
			return 0;
		sender->kind = WAY_MAC;
		__builtin_memcpy(sender->end, ethernet->h_source, ETH_ALEN);
		__builtin_memcpy(sender->end + ETH_ALEN, ethernet->h_dest, ETH_ALEN);
	}
	sender->ifindex = skb->ifindex;
	return 0;
}

/*
 * Whether a packet was handed over by its sender. What pods and nodes of the cluster send is their own; what else a
 * node sends is an outside client's. That a tunnel's far end is a node has been seen to.
 */
static __noinline bool handed_over(const struct work *work)
{
	const struct way *sender = &work->arrival.sender;
	struct peer_key key = {};

	if (sender->kind != WAY_MAC)
		return sender->kind == WAY_TUNNEL;
	__builtin_memcpy(key.mac, sender->end, ETH_ALEN);
	return bpf_map_lookup_elem(&peers, &key) && !of_the_cluster(&work->packet.tuple.saddr);
}

/* Notes how a packet came in. */
static __noinline int arrive(struct __sk_buff *skb, struct work *work, bool overlay)
{
	find_sender(skb, &work->arrival.sender, overlay);
	work->arrival.handed_over = handed_over(work);
	return 0;
}

static __always_inline bool is_probe(const struct packet *packet)
{
	return packet->tuple.protocol == IPPROTO_UDP && packet->tuple.dport_be == bpf_htons(PROBE_PORT) &&
	       packet->ttl == 1;
}

/*
 * What is TCP in mid-stream to an address of the node, and has no flow, is of the host's own connections; of a lost
 * flow, the host's stack says so itself. But while flows are taken over it must not say it of a pod's or a Service's.
 */
static __always_inline int leave_to_host(const struct packet *packet)
{
	__u16 masqueraded = bpf_ntohs(packet->tuple.dport_be) - config.masquerade_port_min;
	struct frontend_key key;

	if (!taking_over())
		return PASS;
	return masqueraded < config.masquerade_port_count || frontend_at(&packet->tuple, &key) ? -DROP_TAKING_OVER
											       : PASS;
}

/*
 * What asks the host itself needs no flow, unless its answers would be taken for those of one: of a Service whose
 * backend is in the host's network, which was asked from the same port. Returns 0: it gets a flow, and there another
 * port, or PASS.
 */
static __always_inline int open_to_host(struct work *work)
{
	const struct flow *other;

	work->twin = reverse(&work->packet.tuple);
	other = flow_lookup(&work->twin);
	return other && other->flags & FLOW_REPLY && !flow_expired(other, flow_clock()) ? 0 : PASS;
}

/* How a new flow's packet that comes in goes on. Returns 0, PASS, or a negated drop reason. */
static __always_inline int open_from_outside(struct __sk_buff *skb, struct work *work, bool overlay)
{
	const struct packet *packet = &work->packet;
	struct arrival *arrival = &work->arrival;
	struct opening *opening = &work->opening;
	const struct pod *pod = pod_at(&packet->tuple.daddr);
	const struct frontend *frontend = NULL;
	enum service_set set = SERVICE_CLUSTER;
	struct frontend_key key;
	bool own = false;
	int result;

	opening->to = packet->tuple;
	if (!pod) {
		own = own_address(&packet->tuple.daddr);
		if (own && in_mid_stream(packet))
			return leave_to_host(packet);
		frontend = frontend_asked(packet, &key);
	}
	if ((pod || own || frontend) && is_here(&packet->tuple.saddr))
		return -DROP_SPOOFED;
	arrive(skb, work, overlay);
	if (arrival->handed_over) {
		opening->flags = FLOW_HANDED_OVER;
		opening->back = arrival->sender;
	}
	if (pod)
		return 0;
	if (!frontend && !arrival->handed_over) {
		if (own)
			return open_to_host(work);
		result = unserved_on_its_way(skb, packet, true);
		if (!result && pod_is_gone(skb, packet, &packet->tuple))
			result = -DROP_NO_POD;
		return result ? result : PASS;
	}
	if (!frontend) {
		if (is_probe(packet))
			return PASS;
		return own ? 0 : -DROP_NO_LOCAL_BACKEND; /* a backend in the host's network may be meant */
	}
	/* who has handed over has seen to it */
	if (!arrival->handed_over && !source_allowed(frontend, &key, &packet->tuple.saddr))
		return -DROP_SOURCE_RANGE;
	/* What was handed over as the client sent it is answered directly. */
	opening->flags = 0;
	opening->back = (struct way){};
	if (arrival->handed_over || frontend->flags & FRONTEND_LOCAL)
		set = SERVICE_HERE;
	/* Another node's pods and processes ask here for what is here: handed over, they would not be told from others'
	 * packets. Their answers go by destination: the kernel's route may lead into the overlay, but has no tunnel. */
	if (of_a_node(remote_at(&packet->tuple.saddr)))
		set = SERVICE_HERE;
	else
		opening->back = way_to_client(skb, &packet->tuple);
	/* clients outside may come by several nodes, which are to agree */
	result = open_service(packet, &key, set | SERVICE_AGREE, opening);
	if (result || arrival->handed_over)
		return result;
	return open_handover(skb, packet, frontend, opening);
}

static __noinline int begin_from_outside(struct __sk_buff *skb, struct work *work, bool overlay)
{
	int result;

	__builtin_memset(&work->opening, 0, sizeof(work->opening));
	result = open_from_outside(skb, work, overlay);
	return result ? result : flow_create(skb, work);
}

/* Whether a packet asks for a connection where its flow has one. */
static __always_inline bool opens_another(const struct packet *packet, const struct flow *flow)
{
	return opens_connection(packet) && flow->state != FLOW_NEW;
}

/*
 * The answers of a flow that was handed over follow its sender: an entry node may have given way to another. Each
 * packet's sender is compared with the last one's, which the entry knows; only another one is looked up.
 *
 * One port of a client's, by two nodes, or by one and straight, to one backend: for the pod these are one connection,
 * and there is one. The second is refused.
 */
static __always_inline int follow_sender(struct __sk_buff *skb, struct work *work, struct flow *flow, bool overlay)
{
	struct flow *twin;
	bool sent_by_node;

	find_sender(skb, &work->arrival.sender, overlay);
	if (same_way(&flow->way, &work->arrival.sender))
		return 0;
	sent_by_node = handed_over(work);
	if (opens_another(&work->packet, flow) && (sent_by_node || flow->flags & FLOW_HANDED_OVER)) {
		work->arrival.handed_over = true;
		return -DROP_NO_FREE_PORT;
	}
	if (!sent_by_node)
		return 0;
	flow->way = work->arrival.sender;
	twin = flow_lookup(&flow->twin);
	if (twin && same_tuple(&twin->twin, &work->packet.tuple))
		twin->way = work->arrival.sender;
	return 0;
}

/* Whether a flow's packets are handed over by this node. The way of what was handed over to it is that of answers. */
static __always_inline bool hands_over(const struct flow *flow)
{
	return !(flow->flags & FLOW_HANDED_OVER) && leads_to_backends_node(&flow->way);
}

/* Continues a flow whose packets come in: its pod may be gone, and then they must not leave the node again. */
static __always_inline int follow_from_outside(struct __sk_buff *skb, struct work *work, struct flow *flow,
					       bool overlay)
{
	int result = 0;

	work->arrival = (struct arrival){};
	if (!work->packet.is_error && (flow->flags & FLOW_HANDED_OVER || opens_another(&work->packet, flow)))
		result = follow_sender(skb, work, flow, overlay);
	work->opening.back = work->arrival.sender;
	follow(work, flow);
	return result ? result : deliver(skb, &work->packet, &work->opening.to, &work->opening.way, true);
}

/* The verdict on what comes in; where it is refused, that goes by opening.back, or to the node whose pod has sent it.
 */
static __always_inline int verdict_for_outside(struct __sk_buff *skb, struct work *work, int result)
{
	const struct packet *packet = &work->packet;
	/* What only begins, and has nobody here, is dropped: the entry node has not heard yet that its backend went,
	 * and chooses another when it is asked again. */
	bool to_node = result == -DROP_NO_FREE_PORT || (result == -DROP_NO_LOCAL_BACKEND && in_mid_stream(packet));
	const struct remote *remote;

	if (!is_answered(packet, result) && !(to_node && work->arrival.handed_over))
		return verdict(skb, result);
	if (answer(skb, result))
		return TC_ACT_SHOT;
	if (work->opening.back.kind != WAY_DESTINATION)
		return send_by_way(skb, &work->opening.back);
	remote = remote_at(&packet->tuple.saddr);
	if (of_a_node(remote))
		return send_to_remote(skb, remote);
	work->opening.back = way_to_client(skb, &packet->tuple);
	return send_by_way(skb, &work->opening.back);
}

/* What comes in for a pod, and begins nothing. */
static __always_inline int pass_to_pod(struct __sk_buff *skb, struct packet *packet)
{
	return is_here(&packet->tuple.saddr) ? -DROP_SPOOFED : forward(skb, packet);
}

/* What comes in that has no flow, and is for no pod here: to a cluster IP it is in vain. */
static __noinline int pass_from_outside(struct __sk_buff *skb, struct work *work, bool overlay)
{
	const struct packet *packet = &work->packet;
	struct frontend_key key;
	int result;

	if (packet->is_error && !own_address(&packet->tuple.daddr)) {
		arrive(skb, work, overlay);
		if (work->arrival.handed_over)
			return -DROP_NO_LOCAL_BACKEND; /* routed from here, it would come back to who has handed it over
							*/
	}
	if (packet->part == PART_KNOWN && frontend_asked(packet, &key))
		return -DROP_FRAGMENT; /* at an address of a Service, it would be routed back to where it came from */
	result = own_address(&packet->tuple.daddr) ? 0 : unserved_on_its_way(skb, packet, true);
	return result ? result : PASS;
}

/* What comes from other nodes and from outside: for a pod of this node, for a Service, or for the host's stack. */
static __always_inline int from_outside(struct __sk_buff *skb, struct work *work, bool overlay)
{
	const struct packet *packet = &work->packet;
	struct flow *flow;
	int result;

	if (link_scoped(&packet->tuple.daddr))
		return PASS;
	flow = flow_find(skb, &work->packet, true, true);
	if (flow && hands_over(flow)) {
		/* what another node sends of this client now ends here, with a backend of this node's or with none */
		arrive(skb, work, overlay);
		if (work->arrival.handed_over)
			flow = NULL;
	}
	if (flow)
		return follow_from_outside(skb, work, flow, overlay);
	work->opening.back = (struct way){};
	if (!begins_flow(packet))
		return pod_at(&packet->tuple.daddr) ? pass_to_pod(skb, &work->packet)
						    : pass_from_outside(skb, work, overlay);
	result = begin_from_outside(skb, work, overlay);
	return result ? result : go_on(skb, work);
}

/*
 * What cannot be read and comes in. For this node itself it is the host's stack's, which may know better, and has
 * counters of its own. For others the stack would send it on as it is, past its flow.
 */
static __noinline int unreadable(struct __sk_buff *skb, const struct packet *packet, int result)
{
	const struct address *to = &packet->tuple.daddr; /* unspecified, where not even that is known */

	if (result == PARSE_NOT_IP || own_address(to) || (link_scoped(to) && !is_unspecified(to)))
		return PASS;
	return drop(skb, result);
}

/*
 * The verdict on what comes in by a device of the node's. `other`: beside the underlay, where what is for a pod's own
 * address is the host's stack's, whose filters and translations were made for it.
 */
static __always_inline int from_device(struct __sk_buff *skb, bool other)
{
	struct work *work = new_work();
	int result;

	if (skb->mark == config.mark) {
		skb->mark = 0; /* nobody behind us is to go by it */
		return PASS;   /* an answer on its way into the host's stack */
	}
	/* A bridge floods, and a capture sees, frames that are for others; those of a VLAN are for its own device. */
	if (skb->pkt_type != 0 /* PACKET_HOST */ || vlan(skb) || !work)
		return PASS;
	result = parse_known(skb, &work->packet);
	if (result != PARSE_NOT_IP && is_denied(&work->packet.tuple.saddr))
		return drop(skb, -DROP_DENIED);
	if (result)
		return unreadable(skb, &work->packet, result);
	if (to_tunnel(&work->packet.tuple) && own_address(&work->packet.tuple.daddr))
		return PASS;
	if (other && pod_at(&work->packet.tuple.daddr))
		return is_here(&work->packet.tuple.saddr) ? drop(skb, -DROP_SPOOFED) : PASS;
	return verdict_for_outside(skb, work, from_outside(skb, work, false));
}

SEC("classifier")
int from_netdev(struct __sk_buff *skb)
{
	return from_device(skb, false);
}

SEC("classifier")
int from_other(struct __sk_buff *skb)
{
	return from_device(skb, true);
}

SEC("classifier")
int from_overlay(struct __sk_buff *skb)
{
	struct work *work = new_work();
	int result;

	if (!out_of_a_node(skb))
		return drop(skb, -DROP_NOT_A_NODE);
	if (vlan(skb))
		return drop(skb, -DROP_BAD_HEADER); /* no node has sent such */
	if (!work)
		return PASS;
	result = parse_known(skb, &work->packet);
	if (result)
		return unreadable(skb, &work->packet, result);
	return verdict_for_outside(skb, work, from_outside(skb, work, true));
}

/*
 * Gives a packet of a device that has no link layer (a TUN, WireGuard) an Ethernet header, as all here expects one, and
 * as redirects to pods and to other devices need. Returns 0 or a negated errno: it has none.
 */
static __always_inline int add_link_header(struct __sk_buff *skb)
{
	struct ethhdr *ethernet;
	int error = bpf_skb_change_head(skb, ETH_HLEN, 0);

	if (error)
		return error;
	ethernet = header(skb, 0, sizeof(*ethernet));
	if (!ethernet)
		return -ENOMEM;
	ethernet->h_proto = skb->protocol;
	return 0;
}

/* A header before what the host's stack takes harms nothing: that looks at what comes behind. */
SEC("classifier")
int from_l3(struct __sk_buff *skb)
{
	return add_link_header(skb) ? PASS : from_device(skb, by_another_device(skb));
}

/* The flow of a packet that the host's stack sends under its own address; NULL: none. */
static __always_inline const struct flow *flow_of_host(struct __sk_buff *skb, struct packet *packet)
{
	return own_address(&packet->tuple.saddr) ? flow_find(skb, packet, true, false) : NULL;
}

/* The answer of a backend in the host's network, on its way to a client outside this node. */
static __noinline int answer_to_outside(struct __sk_buff *skb, struct packet *packet, const struct flow *flow)
{
	/* the stack has found its way, but where another node must translate it */
	const bool to_entry = leads_to_entry_node(&flow->way);
	struct tuple to = reverse(&flow->twin);
	int error = to_entry ? fits_on_its_way(skb, packet, NULL, &flow->way) : 0;

	if (!error)
		error = rewrite(skb, packet, &to);
	if (error)
		return error;
	return to_entry ? send_by_way(skb, &flow->way) : PASS;
}

/*
 * A packet of the host's that carries an address of Services. A process that talks to one is given a backend at connect
 * or sendmsg; what comes here all the same was sent past these hooks (SCTP, connected UDP where its sockets cannot be
 * closed, MPTCP, a process of another cgroup), has no backend, or must not use it. Returns 0: a backend was chosen,
 * PASS: it has no such address, or a negated drop reason.
 */
static __always_inline int open_from_host(struct __sk_buff *skb, const struct packet *packet, struct opening *opening)
{
	struct frontend_key key;
	const struct frontend *frontend = frontend_for_own(&packet->tuple, &key);
	int result;

	opening->to = packet->tuple;
	opening->flags = FLOW_FROM_HERE;
	if (frontend && !key.port_be && !packet->is_echo)
		return PASS; /* other ICMP to an address that answers echo: neighbour discovery, for one */
	if (!frontend) {
		/* every packet of the host's own connections comes by here: only those that begin one are looked at
		 * further */
		if (in_mid_stream(packet) || !same_address(&key.address, &packet->tuple.daddr))
			return PASS;
		result = unserved_on_its_way(skb, packet, false);
		return result ? result : PASS;
	}
	/* another node's port that is a NodePort as well: its process talks to one here */
	if (in_mid_stream(packet) && !(frontend->flags & FRONTEND_CLUSTER_IP))
		return taking_over() ? -DROP_TAKING_OVER : PASS;
	if (frontend->flags & FRONTEND_SOURCES && !(frontend->flags & FRONTEND_HOST_ALLOWED))
		return -DROP_SOURCE_RANGE;
	/* nothing leads from here into the host's stack */
	result = open_service(packet, &key, set_for_own(frontend) | SERVICE_NOT_OWN, opening);
	if (result)
		return result == -DROP_NO_SLOT ? -DROP_UNTRANSLATED : result;
	/* what is not the host's own has no way back */
	return begins_flow(packet) && own_address(&packet->tuple.saddr) ? 0 : -DROP_UNTRANSLATED;
}

static __noinline int begin_from_host(struct __sk_buff *skb, struct work *work)
{
	int result;

	__builtin_memset(&work->opening, 0, sizeof(work->opening));
	result = open_from_host(skb, &work->packet, &work->opening);
	if (result)
		return result;
	/* Its answers come in by this device again: by another one rp_filter takes none from a Service's address. */
	work->opening.back = way_to_host(skb);
	return flow_create(skb, work);
}

/* Sends a packet of the host's as `to`. Not by deliver(), which is for what comes in. */
static __noinline int send_from_host(struct __sk_buff *skb, struct packet *packet, const struct tuple *to)
{
	const struct pod *pod = pod_at(&to->daddr);
	const struct remote *remote = pod ? NULL : remote_at(&to->daddr);
	struct way way = {.ifindex = POD_LINKS, .kind = WAY_ROUTE};
	int error, route;

	if (remote && remote->flags & REMOTE_SERVICES)
		return -DROP_NO_SERVICE;
	if (!pod && !remote) {
		route = look_up_route(skb, &to->saddr, &to->daddr, &way.ifindex);
		if (route == BPF_FIB_LKUP_RET_UNREACHABLE)
			return -DROP_NO_POD;
		if (!leads_out(route))
			way.ifindex = skb->ifindex;
	}
	error = fits_on_its_way(skb, packet, remote, &way);
	if (!error)
		error = rewrite(skb, packet, to);
	if (error)
		return error;
	skb->mark = config.mark;
	if (pod) {
		error = rewrite_macs(skb, pod->pod_mac, pod->host_mac);
		return error ? error : bpf_redirect(pod->ifindex, 0);
	}
	return of_a_node(remote) ? send_to_remote(skb, remote) : send_by_way(skb, &way);
}

/* The verdict on a packet of the host's; where it is refused, that goes back into the host's stack. */
static __always_inline int verdict_for_host(struct __sk_buff *skb, const struct packet *packet, int result)
{
	if (!is_answered(packet, result))
		return verdict(skb, result);
	if (answer(skb, result))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* What the host's stack sends by a device of the node's. */
static __always_inline int from_host(struct __sk_buff *skb)
{
	struct work *work = new_work();
	const struct packet *packet;
	const struct flow *flow;
	int result = 0;

	if (!work || parse_known(skb, &work->packet))
		return PASS;
	packet = &work->packet;
	flow = flow_of_host(skb, &work->packet);
	if (flow && flow->flags & FLOW_REPLY)
		return verdict_for_host(skb, packet, answer_to_outside(skb, &work->packet, flow));
	if (flow) {
		follow(work, flow);
		if (packet->is_error && same_tuple(&packet->tuple, &work->opening.to))
			return PASS; /* untranslated, by the way that the stack has found for it */
	} else {
		result = begin_from_host(skb, work);
	}
	if (!result)
		result = send_from_host(skb, &work->packet, &work->opening.to);
	return verdict_for_host(skb, packet, result);
}

SEC("classifier")
int to_netdev(struct __sk_buff *skb)
{
	return skb->mark == config.mark || vlan(skb) ? PASS : from_host(skb);
}

/* A function, lest clang share its redirects with to_l3's: "dereference of modified ctx ptr". */
static __noinline int from_host_apart(struct __sk_buff *skb)
{
	return from_host(skb);
}

/* No helper takes the header off again: a redirect to such a device does. */
SEC("classifier")
int to_l3(struct __sk_buff *skb)
{
	int result;

	if (skb->mark == config.mark || add_link_header(skb))
		return PASS;
	result = from_host_apart(skb);
	if (result != PASS)
		return result;
	skb->mark = config.mark;
	return bpf_redirect(skb->ifindex, 0);
}

/* The host's stack routes to other nodes' pods by this device, but knows nothing of tunnels. */
SEC("classifier")
int to_overlay(struct __sk_buff *skb)
{
	struct work *work;
	const struct packet *packet;
	const struct remote *remote;
	const struct flow *flow;
	int result;

	if (skb->mark == config.mark)
		return PASS; /* sent by us, with its tunnel set */
	work = new_work();
	if (!work)
		return TC_ACT_SHOT;
	packet = &work->packet;
	result = parse_known(skb, &work->packet);
	if (result)
		return result == PARSE_NOT_IP ? PASS : drop(skb, result); /* to which node? */
	result = PASS;
	if (link_scoped(&packet->tuple.daddr))
		return TC_ACT_SHOT; /* the device's own multicast has no far end, and is nobody's loss: uncounted */
	flow = flow_of_host(skb, &work->packet);
	if (flow && flow->flags & FLOW_REPLY)
		result = answer_to_outside(skb, &work->packet, flow);
	if (result == PASS) {
		remote = remote_at(&packet->tuple.daddr);
		result = of_a_node(remote) ? enter_tunnel(skb, &remote->node, OVERLAY_VNI) : -DROP_NO_REMOTE;
	}
	return verdict_for_host(skb, packet, result ? result : PASS);
}
