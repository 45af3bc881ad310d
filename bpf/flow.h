/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow table. A flow is two entries, one for either direction, each carrying the other's key: its twin. A packet
 * that matches an entry leaves as the reverse of the twin, which is all that translation is.
 *
 * What it promises:
 *  - An expired entry is absent, whenever it is looked at; nothing waits for a sweep.
 *  - Two flows never share a key. A new flow whose replies would arrive under the key of another one's is given another
 *    source port, also while that other one is closing: its last packets, and the server's TIME_WAIT, stay its own.
 *  - A SYN on a closing, closed or reset flow starts a new one.
 *  - An entry whose twin belongs to a newer flow translates the last packets of its own, and touches nothing else.
 *  - An entry whose twin was evicted restores it with the next refresh, and that is counted: unless what would have
 *    matched the twin comes first, which is mid-stream without a flow.
 *  - An entry also knows the way: how what matches it leaves this node.
 */
#ifndef CALICO_EBPF_FLOW_H
#define CALICO_EBPF_FLOW_H

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "config.h"
#include "device.h"
#include "drop.h"
#include "icmp_error.h"
#include "maps.h"
#include "owner.h"
#include "parse.h"
#include "route.h"
#include "service.h"
#include "table.h"
#include "work.h"

/* How long the rest of a datagram is waited for by who puts it together: Linux, IPv4; in IPv6 twice as long. */
#define REASSEMBLY_NS (30 * SECOND_NS)

/*
 * Any port will do for a collision. Of the tries the second half takes the ports of closed flows as well: a client that
 * opens and closes thousands of connections a second has most of them there, and a server that still waits for the end
 * of such a one has the SYN sent twice at worst.
 */
#define PORT_MIN   1024
#define PORT_COUNT (65536 - PORT_MIN)

#define COLLISION_TRIES 16

/* With 95 of 100 ports to one destination taken a free one is missed once in 500,000 times; the verifier bears 256. */
#define MASQUERADE_TRIES 256

static __always_inline __u64 flow_timeout(__u8 protocol, __u8 state)
{
	if (!connects(protocol))
		return state == FLOW_NEW ? config.udp_new_ns : config.udp_established_ns;
	switch (state) {
	case FLOW_NEW:
		return config.tcp_new_ns;
	case FLOW_ESTABLISHED:
		return config.tcp_established_ns;
	case FLOW_CLOSING:
		return config.tcp_closing_ns;
	default:
		return config.tcp_closed_ns;
	}
}

/*
 * Later fragments get the ports of the first one, which comes before them unless the network has changed their order:
 * it notes them here, also for those that go on under the same addresses past another hook. Called only for a packet
 * whose source is believed.
 */
static __noinline int know_fragment(struct packet *packet)
{
	const struct fragment_key key = {
		.saddr = packet->tuple.saddr,
		.daddr = packet->tuple.daddr,
		.identification = packet->identification,
		.protocol = packet->is_v6 ? 0 : packet->tuple.protocol,
	};
	const struct fragment *first;

	if (packet->part == PART_FIRST) {
		const struct fragment note = {
			.seen_ns = flow_clock(),
			.sport_be = packet->tuple.sport_be,
			.dport_be = packet->tuple.dport_be,
			.protocol = packet->tuple.protocol,
			.is_echo = packet->is_echo,
		};

		bpf_map_update_elem(&fragments, &key, &note, BPF_ANY);
		return 0;
	}
	first = bpf_map_lookup_elem(&fragments, &key);
	/* signed: on another CPU it may just have been seen later */
	if (!first || (__s64)(flow_clock() - first->seen_ns) > (__s64)REASSEMBLY_NS)
		return 0;
	packet->tuple.sport_be = first->sport_be;
	packet->tuple.dport_be = first->dport_be;
	packet->tuple.protocol = first->protocol;
	packet->is_echo = first->is_echo;
	packet->part = PART_KNOWN;
	return 0;
}

/* As parse(), of a packet whose source is believed or of no matter. */
static __always_inline int parse_known(struct __sk_buff *skb, struct packet *packet)
{
	int result = parse(skb, packet);

	return result || !packet->part ? result : know_fragment(packet);
}

/* What is followed: TCP, UDP, SCTP and ICMP echo, but for fragments whose ports are not known. */
static __always_inline bool has_flow(const struct packet *packet)
{
	if (packet->part == PART_UNKNOWN)
		return false;
	return has_ports(packet->tuple.protocol) || packet->is_echo;
}

/* Whether a later fragment may be of a flow, which its first one would have begun. */
static __always_inline bool may_have_flow(const struct packet *packet)
{
	__u8 icmp = packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;

	if (packet->part != PART_UNKNOWN)
		return has_flow(packet);
	return packet->is_v6 || has_ports(packet->tuple.protocol) || packet->tuple.protocol == icmp;
}

/* Later fragments and ICMP errors begin nothing: where the first one has come to nothing, neither shall they. */
static __always_inline bool begins_flow(const struct packet *packet)
{
	return has_flow(packet) && !is_later(packet) && !packet->is_error;
}

static __always_inline bool opens_connection(const struct packet *packet)
{
	return connects(packet->tuple.protocol) &&
	       (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

static __always_inline bool in_mid_stream(const struct packet *packet)
{
	return connects(packet->tuple.protocol) && !opens_connection(packet);
}

/*
 * Whether the flows of another layout of the maps are being taken over: one that is missing here may be there, and one
 * that is closing here may have been replaced there since it was copied.
 */
static __always_inline bool taking_over(void)
{
	__u32 index = STATE_TAKING_OVER_UNTIL_NS;
	const __u64 *until_ns = bpf_map_lookup_elem(&state, &index);

	return until_ns && flow_clock() < *until_ns;
}

/* What becomes of TCP in mid-stream that has no flow, and needs one. */
static __always_inline int no_flow(void)
{
	return taking_over() ? -DROP_TAKING_OVER : -DROP_NO_FLOW;
}

static __always_inline bool closes_connection(const struct packet *packet)
{
	return packet->tcp_flags & (TCP_RST | TCP_FIN);
}

/* What one side sends while the other's RST is on its way to it revives a flow that is over all the same. */
static __always_inline bool may_be_over(const struct flow *flow)
{
	return flow->state >= FLOW_CLOSING || flow->flags & FLOW_RST;
}

/* Whether an entry that was found is the one by which this packet goes; `services`: it may be for a Service. */
static __always_inline bool flow_matches(const struct packet *packet, const struct flow *flow, __u64 now, bool services)
{
	struct frontend_key key;
	bool opens = opens_connection(packet);

	if (flow_expired(flow, now))
		return false;
	/* Its port may be another connection's by now: a SYN's, or one's whose flow is still in the other layout. */
	if (may_be_over(flow) && (opens || taking_over()))
		return false;
	if (flow->flags & FLOW_REPLY || !(opens || !connects(packet->tuple.protocol)))
		return true;
	/* UDP and echo follow their Service at once, and so does a connection that only asks to be opened: to a backend
	 * that is gone they choose another, and where the Service came after them they choose their first. */
	if (flow->backend_id)
		return backend_exists(flow->backend_id);
	return !(services && frontend_for_own(&packet->tuple, &key));
}

/* The state after this packet, the other side's FIN not considered. */
static __always_inline __u8 flow_next_state(const struct packet *packet, const struct flow *flow)
{
	bool reply = flow->flags & FLOW_REPLY;
	__u8 flags = packet->tcp_flags;

	if (!connects(packet->tuple.protocol))
		return reply ? FLOW_ESTABLISHED : flow->state;
	/* The opener's own RST answers a dying connection's ACK, and does not close the flow that its SYN has opened.
	 */
	if (flags & TCP_RST)
		return flow->state == FLOW_NEW && !reply ? FLOW_NEW : FLOW_RESET;
	switch (flow->state) {
	case FLOW_NEW: /* a stray ACK from the other side's past is no answer; the opener's ACK shows that one came */
		return !!(flags & TCP_SYN) == reply ? FLOW_ESTABLISHED : FLOW_NEW;
	case FLOW_ESTABLISHED:
		return flags & TCP_FIN ? FLOW_CLOSING : FLOW_ESTABLISHED;
	case FLOW_RESET:
		return flags & (TCP_SYN | TCP_FIN) ? FLOW_RESET : FLOW_ESTABLISHED;
	default:
		return flow->state;
	}
}

/*
 * The way of what matches an evicted twin of `flow`, whose key is `key`: to one `outside` by the route there or, to a
 * backend, handed over; to the host that has asked a Service by the device by which it did; else by its destination.
 */
static __always_inline struct way way_of_twin(struct __sk_buff *skb, const struct tuple *key, const struct flow *flow,
					      bool outside)
{
	const struct remote *remote = outside ? remote_at(&key->saddr) : NULL;
	const bool answers = flow->flags & FLOW_REPLY;

	if (of_a_node(remote))
		return answers && flow->way.kind == WAY_ROUTE ? way_to_backends_node(remote) : (struct way){};
	if (outside)
		return way_to_client(skb, key);
	if (flow->backend_id && own_address(&key->saddr) && !answers)
		return way_to_host(skb);
	return (struct way){};
}

/* Puts back an evicted twin of `flow`, whose key is `key`. Of what was handed over the entries have one way. */
static __noinline void flow_restore(struct __sk_buff *skb, const struct tuple *key, const struct flow *flow,
				    bool outside)
{
	struct flow twin = *flow;

	twin.twin = *key;
	twin.flags = (flow->flags & FLOW_REPLY) ^ FLOW_REPLY;
	if (is_here(&flow->twin.saddr))
		twin.flags |= FLOW_FROM_HERE;
	if (flow->flags & FLOW_REPLY && leads_to_entry_node(&flow->way))
		twin.flags |= FLOW_HANDED_OVER;
	else if (!(flow->flags & FLOW_HANDED_OVER))
		twin.way = way_of_twin(skb, key, flow, outside);
	if (!flow_update(&flow->twin, &twin, BPF_NOEXIST))
		count(COUNTER_FLOWS_RESTORED);
}

/*
 * Has answers whose device has gone leave by another one to which the kernel routes them: a VPN that was set up anew.
 * While it stands they keep to it: a route is asked of each side's device, and rules may give the two different ones.
 */
static __noinline void flow_reroute(struct __sk_buff *skb, struct flow *flow)
{
	__u32 ifindex;

	if (flow->way.kind != WAY_ROUTE || !(flow->flags & FLOW_REPLY) || device_at(flow->way.ifindex))
		return;
	ifindex = route_out(skb, &flow->twin.daddr, &flow->twin.saddr);
	if (device_at(ifindex))
		flow->way.ifindex = ifindex;
}

/*
 * Whether a packet that begins a flow in mid-stream shows that its connection comes by another node than before: the
 * same client's port has a flow to the same backend, whose entry for answers is `other`, and of the two flows one is
 * handed over by another node, the other one a Service's that is met here. Anything else is another connection.
 */
static __always_inline bool has_moved(const struct packet *packet, const struct opening *opening,
				      const struct flow *other)
{
	const bool was_handed_over = leads_to_entry_node(&other->way);

	if (!in_mid_stream(packet) || !(other->flags & FLOW_REPLY) || other->twin.sport_be != packet->tuple.sport_be ||
	    !same_address(&other->twin.saddr, &packet->tuple.saddr))
		return false;
	return opening->flags & FLOW_HANDED_OVER ? other->backend_id && !was_handed_over
						 : opening->backend_id && was_handed_over;
}

/* Follows a flow's state with a packet of it; both entries are written, at most once a second unless it changes. */
static __always_inline void flow_follow(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
					__u64 now, bool outside)
{
	bool fin = packet->tcp_flags & TCP_FIN && !(flow->flags & FLOW_FIN);
	__u8 state = flow_next_state(packet, flow);
	struct flow *twin;

	if (state == flow->state && !fin && now - flow->seen_ns < REFRESH_NS)
		return;
	twin = flow_lookup(&flow->twin);
	if (twin && !same_tuple(&twin->twin, &packet->tuple))
		return; /* another flow has that key by now: this is a packet of an old one */
	if (fin) {
		flow->flags |= FLOW_FIN;
		if (twin && twin->flags & FLOW_FIN)
			state = FLOW_CLOSED;
	}
	if (packet->tcp_flags & TCP_RST && state == FLOW_RESET)
		flow->flags |= FLOW_RST;
	else if (now - flow->seen_ns >= REFRESH_NS)
		flow->flags &= ~FLOW_RST;
	flow->state = state;
	flow->seen_ns = now;
	flow->expires_ns = now + flow_timeout(packet->tuple.protocol, state);
	flow_reroute(skb, flow);
	if (!twin) {
		flow_restore(skb, &packet->tuple, flow, outside);
		return;
	}
	twin->flags = (twin->flags & ~FLOW_RST) | (flow->flags & FLOW_RST);
	twin->state = state;
	twin->seen_ns = now;
	twin->expires_ns = flow->expires_ns;
	flow_reroute(skb, twin);
}

/*
 * Whether a socket of the host's own would take a packet: its port must not be used for another flow. `listening`: also
 * one that would take it from anybody.
 */
static __noinline bool host_socket(struct __sk_buff *skb, const struct tuple *packet, bool listening)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = sizeof(tuple.ipv4);
	struct bpf_sock *socket;
	bool taken;

	if (is_v4(&packet->daddr)) {
		tuple.ipv4.saddr = packet->saddr.word_be[3];
		tuple.ipv4.daddr = packet->daddr.word_be[3];
		tuple.ipv4.sport = packet->sport_be;
		tuple.ipv4.dport = packet->dport_be;
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &packet->saddr, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &packet->daddr, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = packet->sport_be;
		tuple.ipv6.dport = packet->dport_be;
		size = sizeof(tuple.ipv6);
	}
	if (packet->protocol == IPPROTO_TCP) {
		socket = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		taken = socket && (listening || socket->state != BPF_TCP_LISTEN);
	} else if (packet->protocol == IPPROTO_UDP) {
		socket = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		taken = socket;
	} else {
		return false;
	}
	if (socket)
		bpf_sk_release(socket);
	return taken;
}

/* A port to try, in network order. */
static __always_inline __be16 draw_port(__u32 first, __u32 count)
{
	return bpf_htons(first + bpf_get_prandom_u32() % (count ? count : 1));
}

static __always_inline bool same_way(const struct way *a, const struct way *b)
{
	__u64 x[3], y[3];

	__builtin_memcpy(x, a, sizeof(x));
	__builtin_memcpy(y, b, sizeof(y));
	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

/*
 * Whether an entry that is there keeps its place: it is another live flow's. Of two connections under one key these are
 * two where one is over, and its answers went another way: then the client knows the server by two names (straight, and
 * through an entry node), and the server's TIME_WAIT would take a segment of the new one for a stray of the old one.
 */
static __always_inline bool keeps_place(const struct flow *other, const struct work *work)
{
	if (flow_expired(other, work->entry.seen_ns))
		return false;
	if (work->opening.pressed && other->state >= FLOW_CLOSED)
		return false;
	if (same_tuple(&other->twin, &work->packet.tuple))
		return may_be_over(other) && !same_way(&other->way, &work->entry.way);
	return true;
}

/*
 * Inserts work->entry under work->twin, unless that is another live flow's, of another connection. Returns 0, -EEXIST,
 * or another negated errno.
 */
static __always_inline int flow_insert(const struct work *work)
{
	int error = flow_update(&work->twin, &work->entry, BPF_NOEXIST);
	const struct flow *other;

	if (error != -EEXIST)
		return error;
	other = flow_lookup(&work->twin);
	if (other && keeps_place(other, work)) {
		if (!has_moved(&work->packet, &work->opening, other))
			return -EEXIST;
		/* by the way before nothing comes any more, or, if it does, moves it back */
		bpf_map_delete_elem(&flows, &other->twin);
	}
	return flow_update(&work->twin, &work->entry, BPF_ANY);
}

/*
 * Inserts work->entry under work->twin. Returns 0, -EEXIST where another live flow has that key or a socket of the
 * host's would take its packets, or another negated errno.
 *
 * A global function, as flow_claim() is: the verifier goes through it once, not anew for each state in which it is
 * called.
 */
__noinline int flow_try(struct __sk_buff *skb)
{
	struct work *work = current_work();

	if (!work)
		return -ENOENT;
	/* what the host itself talks to past us has no flow, and answers to it must not be taken for this one's */
	if ((work->opening.masquerade || work->opening.back.kind == WAY_HOST) && host_socket(skb, &work->twin, true))
		return -EEXIST;
	/* nor has who is connected with the host itself: a SYN from that port would end it */
	if (opens_connection(&work->packet) && own_address(&work->twin.saddr)) {
		work->opening.to.sport_be = work->twin.dport_be;
		if (host_socket(skb, &work->opening.to, false))
			return -EEXIST;
	}
	return flow_insert(work);
}

/* Finds a port for a masqueraded flow's replies. */
static __always_inline int claim_masqueraded(struct __sk_buff *skb, struct work *work)
{
	for (int i = 0; i < MASQUERADE_TRIES; i++) {
		int error;

		work->twin.dport_be = draw_port(config.masquerade_port_min, config.masquerade_port_count);
		work->opening.pressed = i >= MASQUERADE_TRIES / 2;
		error = flow_try(skb);
		if (error != -EEXIST)
			return error ? -DROP_FLOWS_FULL : 0;
	}
	return -DROP_PORTS_EXHAUSTED;
}

static __always_inline int claim(struct __sk_buff *skb, struct work *work)
{
	for (int i = 0; i < COLLISION_TRIES; i++) {
		int error = flow_try(skb);

		if (error != -EEXIST)
			return error ? -DROP_FLOWS_FULL : 0;
		count(COUNTER_PORTS_REWRITTEN);
		work->twin.dport_be = draw_port(PORT_MIN, PORT_COUNT);
		work->opening.pressed = i >= COLLISION_TRIES / 2;
	}
	return -DROP_NO_FREE_PORT;
}

/*
 * Inserts the entry for replies, work->entry under work->twin; where another live flow has that key, under another port
 * of the client. Returns 0 with work->twin as it was inserted, or a negated drop reason.
 */
__noinline int flow_claim(struct __sk_buff *skb)
{
	struct work *work = current_work();

	if (!work)
		return -DROP_FLOWS_FULL;
	return work->opening.masquerade ? claim_masqueraded(skb, work) : claim(skb, work);
}

/*
 * The entry by which packets go that answer the one which an ICMP error quotes; NULL: there is none. The error goes the
 * same way: from here on packet->tuple is that of such an answer. It changes nothing of the flow.
 */
static __noinline struct flow *flow_of_error(struct __sk_buff *skb, struct packet *packet)
{
	struct tuple quoted = {};
	struct tuple answer;
	struct flow *flow;

	if (packet->part || parse_quoted(skb, packet, &quoted) || !same_address(&quoted.saddr, &packet->tuple.daddr))
		return NULL;
	answer = reverse(&quoted);
	flow = flow_lookup(&answer);
	if (!flow || flow_expired(flow, flow_clock()))
		return NULL;
	packet->tuple = answer;
	return flow;
}

/*
 * The flow of a packet, followed; NULL: there is none, or the packet begins another. `services`: the packet may be for
 * one; `outside`: it comes in from outside this node.
 */
static __always_inline struct flow *flow_find(struct __sk_buff *skb, struct packet *packet, bool services, bool outside)
{
	__u64 now;
	struct flow *flow;

	if (!has_flow(packet))
		return packet->is_error ? flow_of_error(skb, packet) : NULL;
	now = flow_clock();
	flow = flow_lookup(&packet->tuple);
	if (!flow || (outside && flow->flags & FLOW_FROM_HERE) || !flow_matches(packet, flow, now, services))
		return NULL;
	flow_follow(skb, packet, flow, now, outside);
	return flow;
}

/* Whether an opener's packets that leave by this way are handed over by this node. */
static __always_inline bool leads_to_backends_node(const struct way *way)
{
	return way->kind == WAY_NODE || way->kind == WAY_TUNNEL;
}

/*
 * The state of a connection that is followed from a packet in mid-stream on. One that every node would lead to the same
 * backend is not believed until a second packet comes: anybody can send one.
 */
static __always_inline __u8 picked_up_state(const struct packet *packet, const struct opening *opening)
{
	if (packet->tcp_flags & TCP_RST)
		return FLOW_RESET;
	if (packet->tcp_flags & TCP_FIN)
		return FLOW_CLOSING;
	return opening->backend_id && in_mid_stream(packet) ? FLOW_NEW : FLOW_ESTABLISHED;
}

/*
 * Starts the flow of work->packet as work->opening says; a collision changes the source port of opening.to.
 *
 * TCP in mid-stream is followed from here on, but for a FIN or RST: there is nothing to follow any more, unless that is
 * the first that comes by here of a connection to a backend. While flows are taken over it is dropped: it would go
 * untranslated, and the far end reset the connection. Returns 0 or a negated drop reason.
 */
static __always_inline int flow_create(struct __sk_buff *skb, struct work *work)
{
	const struct packet *packet = &work->packet;
	struct opening *opening = &work->opening;
	struct flow *entry = &work->entry;
	int error;

	if (in_mid_stream(packet) && taking_over())
		return -DROP_TAKING_OVER;
	/* what comes by here first of a connection that has moved may be its last */
	if (closes_connection(packet) && !opening->backend_id && !(opening->flags & FLOW_HANDED_OVER))
		return 0;
	work->twin = reverse(&opening->to);
	*entry = (struct flow){
		.twin = packet->tuple,
		.seen_ns = flow_clock(),
		.backend_id = opening->backend_id,
		.flags = FLOW_REPLY,
		.way = opening->back,
	};
	entry->created_ns = entry->seen_ns;
	if (is_here(&opening->to.daddr))
		entry->flags |= FLOW_FROM_HERE;
	if (in_mid_stream(packet))
		count(COUNTER_FLOWS_PICKED_UP);
	if (in_mid_stream(packet) || (opening->one_way && packet->tuple.protocol == IPPROTO_UDP))
		entry->state = picked_up_state(packet, opening);
	entry->expires_ns = entry->seen_ns + flow_timeout(packet->tuple.protocol, entry->state);
	error = flow_claim(skb);
	if (error)
		return error;
	entry->twin = work->twin;
	entry->flags = opening->flags | (packet->tcp_flags & TCP_FIN ? FLOW_FIN : 0);
	/* the way of what was handed over is that of its answers, with which its senders are compared */
	entry->way = opening->flags & FLOW_HANDED_OVER ? opening->back : opening->way;
	if (flow_update(&packet->tuple, entry, BPF_ANY))
		return -DROP_FLOWS_FULL;
	count(COUNTER_FLOWS_CREATED);
	if (opening->masquerade)
		count(COUNTER_MASQUERADED);
	if (leads_to_backends_node(&opening->way))
		count(COUNTER_HANDED_OVER);
	opening->to.sport_be = work->twin.dport_be;
	return 0;
}

#endif
