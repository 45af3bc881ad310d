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
 *  - An entry whose twin was evicted restores it with the next refresh, and that is counted.
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
#include "drop.h"
#include "maps.h"
#include "parse.h"
#include "service.h"

#define REFRESH_NS SECOND_NS

#define PORT_MIN   1024
#define PORT_COUNT (65536 - PORT_MIN)
#define PORT_TRIES 16

/* CLOCK_MONOTONIC; to the tick where the kernel tells it so, which costs a tenth. */
static __always_inline __u64 flow_clock(void)
{
	return config.coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

static __always_inline __u64 flow_timeout(__u8 protocol, __u8 state)
{
	if (protocol != IPPROTO_TCP)
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

static __always_inline bool flow_expired(__u8 protocol, const struct flow *flow, __u64 now)
{
	return (__s64)(now - flow->seen_ns) > (__s64)flow_timeout(protocol, flow->state);
}

static __always_inline bool opens_connection(const struct packet *packet)
{
	return packet->tuple.protocol == IPPROTO_TCP &&
	       (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

static __always_inline bool backend_exists(__u32 backend_id)
{
	struct backend_key key = {.backend_id = backend_id};

	return bpf_map_lookup_elem(&backends, &key);
}

static __always_inline struct frontend_key frontend_key(const struct tuple *tuple)
{
	return (struct frontend_key){
		.address = tuple->daddr,
		.port_be = tuple->dport_be,
		.protocol = tuple->protocol,
	};
}

static __always_inline bool is_frontend(const struct tuple *tuple)
{
	struct frontend_key key = frontend_key(tuple);

	return bpf_map_lookup_elem(&frontends, &key);
}

/* Whether an entry that was found is the one by which this packet goes; `services`: it may be for a Service. */
static __always_inline bool flow_matches(const struct packet *packet, const struct flow *flow, __u64 now, bool services)
{
	bool opens = opens_connection(packet);

	if (flow_expired(packet->tuple.protocol, flow, now))
		return false;
	if (opens && flow->state >= FLOW_CLOSING)
		return false;
	if (flow->flags & FLOW_REPLY || !(opens || packet->tuple.protocol == IPPROTO_UDP))
		return true;
	/* UDP follows its Service at once, and so does a connection that only asks to be opened: to a backend that is
	 * gone they choose another, and where the Service came after them they choose their first. */
	if (flow->backend_id)
		return backend_exists(flow->backend_id);
	return !(services && is_frontend(&packet->tuple));
}

/* The state after this packet, the other side's FIN not considered. */
static __always_inline __u8 flow_next_state(const struct packet *packet, const struct flow *flow)
{
	bool reply = flow->flags & FLOW_REPLY;
	__u8 flags = packet->tcp_flags;

	if (packet->tuple.protocol != IPPROTO_TCP)
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

/* Puts back an evicted twin of `flow`, whose key is `key`. */
static __always_inline void flow_restore(const struct tuple *key, const struct flow *flow)
{
	struct flow twin = *flow;

	twin.twin = *key;
	twin.flags = (flow->flags & FLOW_REPLY) ^ FLOW_REPLY;
	if (!bpf_map_update_elem(&flows, &flow->twin, &twin, BPF_NOEXIST))
		count(COUNTER_FLOWS_RESTORED);
}

/* Follows a flow's state with a packet of it; both entries are written, at most once a second unless it changes. */
static __always_inline void flow_follow(const struct packet *packet, struct flow *flow, __u64 now)
{
	bool fin = packet->tcp_flags & TCP_FIN && !(flow->flags & FLOW_FIN);
	__u8 state = flow_next_state(packet, flow);
	struct flow *twin;

	if (state == flow->state && !fin && now - flow->seen_ns < REFRESH_NS)
		return;
	twin = bpf_map_lookup_elem(&flows, &flow->twin);
	if (twin && !same_tuple(&twin->twin, &packet->tuple))
		return; /* another flow has that key by now: this is a packet of an old one */
	if (fin) {
		flow->flags |= FLOW_FIN;
		if (twin && twin->flags & FLOW_FIN)
			state = FLOW_CLOSED;
	}
	flow->state = state;
	flow->seen_ns = now;
	if (!twin) {
		flow_restore(&packet->tuple, flow);
		return;
	}
	twin->state = state;
	twin->seen_ns = now;
}

/*
 * Inserts the entry for replies, under `twin`; where another live flow has that key, under another port of the client.
 * Returns 0 with `twin` as it was inserted, -DROP_NO_FREE_PORT or -DROP_FLOWS_FULL.
 */
static __noinline int flow_claim(const struct tuple *key, struct tuple *twin, const struct flow *entry)
{
	for (int i = 0; i < PORT_TRIES; i++) {
		long error = bpf_map_update_elem(&flows, twin, entry, BPF_NOEXIST);
		const struct flow *other;

		if (!error)
			return 0;
		if (error != -EEXIST)
			return -DROP_FLOWS_FULL;
		other = bpf_map_lookup_elem(&flows, twin);
		if (!other || same_tuple(&other->twin, key) || flow_expired(key->protocol, other, entry->seen_ns))
			return bpf_map_update_elem(&flows, twin, entry, BPF_ANY) ? -DROP_FLOWS_FULL : 0;
		count(COUNTER_PORTS_REWRITTEN);
		twin->dport_be = bpf_htons(PORT_MIN + bpf_get_prandom_u32() % PORT_COUNT);
	}
	return -DROP_NO_FREE_PORT;
}

/*
 * Starts the flow of `packet`, which leaves this node as `to`; a collision changes the source port of `to`.
 * Returns 0 or a negated drop reason.
 */
static __always_inline int flow_create(const struct packet *packet, struct tuple *to, __u32 backend_id, __u64 now)
{
	struct tuple twin = reverse(to);
	struct flow entry = {
		.twin = packet->tuple,
		.seen_ns = now,
		.created_ns = now,
		.backend_id = backend_id,
		.flags = FLOW_REPLY,
	};
	int error;

	if (packet->tuple.protocol == IPPROTO_TCP && !opens_connection(packet)) {
		entry.state = FLOW_ESTABLISHED;
		count(COUNTER_FLOWS_PICKED_UP);
	}
	error = flow_claim(&packet->tuple, &twin, &entry);
	if (error)
		return error;
	entry.twin = twin;
	entry.flags = 0;
	if (bpf_map_update_elem(&flows, &packet->tuple, &entry, BPF_ANY))
		return -DROP_FLOWS_FULL;
	count(COUNTER_FLOWS_CREATED);
	to->sport_be = twin.dport_be;
	return 0;
}

/* What a new flow's first packet becomes: `to`, with the backend's id where it is through a Service. */
static __always_inline int flow_destination(const struct packet *packet, struct tuple *to,
					    struct backend_key *backend_key)
{
	struct frontend_key key = frontend_key(&packet->tuple);
	struct backend backend;
	int result = service_select(&key, backend_key, &backend);

	if (result <= 0)
		return result;
	if (packet->tuple.protocol == IPPROTO_TCP && !opens_connection(packet))
		return -DROP_NO_FLOW;
	to->daddr = backend.address;
	to->dport_be = backend.port_be;
	/* A pod that reaches itself must not see its own address as the client's: it sees the Service's. */
	if (same_address(&backend.address, &packet->tuple.saddr))
		to->saddr = packet->tuple.daddr;
	return 0;
}

/*
 * Finds the flow of a packet, or starts it, and says in `to` as what the packet goes on.
 *
 * A TCP packet in mid-stream without a flow is refused where it is for a Service, since nobody knows its backend any
 * more; elsewhere its flow is followed from here on. `services`: whether the packet may be for a Service.
 *
 * Returns 0 or a negated drop reason; -DROP_NO_BACKEND and -DROP_NO_FLOW are to be refused rather than dropped.
 */
static __always_inline int flow_track(const struct packet *packet, struct tuple *to, bool services)
{
	struct backend_key backend_key = {};
	__u64 now;
	struct flow *flow;
	int error;

	*to = packet->tuple;
	if (packet->tuple.protocol != IPPROTO_TCP && packet->tuple.protocol != IPPROTO_UDP)
		return 0;
	if (packet->fragment == FRAGMENT_LATER)
		return 0;
	now = flow_clock();
	flow = bpf_map_lookup_elem(&flows, &packet->tuple);
	if (flow && flow_matches(packet, flow, now, services)) {
		*to = reverse(&flow->twin);
		flow_follow(packet, flow, now);
		return 0;
	}
	if (services) {
		error = flow_destination(packet, to, &backend_key);
		if (error)
			return error;
	}
	if (packet->tcp_flags & (TCP_RST | TCP_FIN))
		return 0; /* the end of a flow that is not known: nothing to follow */
	return flow_create(packet, to, backend_key.backend_id, now);
}

#endif
