/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The XDP program: at the devices of the underlay, in the driver, before the kernel has made anything of a frame. It is
 * there where the setting `xdp` says so, and does nothing that from_netdev would not do, by the same maps:
 *
 *  - it drops what is denied, what is not of the sources for which a load-balancer address is, and what is for an
 *    address of Services, or a port of a load balancer's, that none has;
 *  - it translates what is in the middle of a flow, and sends it out by the device by which it came.
 *
 * All else it passes: TC begins flows, follows and ends them, tells senders what they must know, and resolves next
 * hops. A flow's packets may go either way at any time. One a second goes by TC, which so keeps its entry alive.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "deny.h"
#include "device.h"
#include "drop.h"
#include "frontend.h"
#include "owner.h"
#include "table.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Where a frame's headers stand. */
struct frame {
	struct ethhdr *ethernet;
	union {
		struct iphdr *v4;
		struct ipv6hdr *v6;
	};
	union {
		struct tcphdr *tcp;
		struct udphdr *udp;
		__be16 *ports;
		void *l4;
	};
	__u16 *check; /* TCP's or UDP's */
	void *end;
	struct tuple tuple;
	__u32 is_v6;
	__u32 tcp_flags;
};

/* As packet_start() and packet_end(), and for their reason. */
static __always_inline void *frame_start(const struct xdp_md *ctx)
{
	void *start;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(start) : "r"(ctx), "i"(offsetof(struct xdp_md, data)));
	return start;
}

static __always_inline void *frame_end(const struct xdp_md *ctx)
{
	void *end;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(end) : "r"(ctx), "i"(offsetof(struct xdp_md, data_end)));
	return end;
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* Drops a frame, and counts it as TC does. */
static __always_inline int drop_frame(const struct xdp_md *ctx, const struct frame *frame, enum drop_reason reason)
{
	count_drop(ctx->ingress_ifindex, reason, frame->end - (void *)frame->ethernet);
	return XDP_DROP;
}

/* Reads the headers up to the addresses. Returns whether it is IP. */
static __always_inline bool read_addresses(const struct xdp_md *ctx, struct frame *frame)
{
	frame->ethernet = frame_start(ctx);
	frame->end = frame_end(ctx);
	if ((void *)(frame->ethernet + 1) > frame->end)
		return false;
	if (frame->ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		frame->v4 = (void *)(frame->ethernet + 1);
		if ((void *)(frame->v4 + 1) > frame->end || frame->v4->version != 4)
			return false;
		frame->tuple.saddr = address_v4(frame->v4->saddr);
		frame->tuple.daddr = address_v4(frame->v4->daddr);
		frame->tuple.protocol = frame->v4->protocol;
		frame->l4 = frame->v4 + 1;
		return true;
	}
	if (frame->ethernet->h_proto != bpf_htons(ETH_P_IPV6))
		return false;
	frame->is_v6 = 1;
	frame->v6 = (void *)(frame->ethernet + 1);
	if ((void *)(frame->v6 + 1) > frame->end || frame->v6->version != 6)
		return false;
	/* as parse_v6() has it */
	if (is_v4((const struct address *)&frame->v6->saddr) || is_v4((const struct address *)&frame->v6->daddr))
		return false;
	__builtin_memcpy(&frame->tuple.saddr, &frame->v6->saddr, sizeof(struct address));
	__builtin_memcpy(&frame->tuple.daddr, &frame->v6->daddr, sizeof(struct address));
	frame->tuple.protocol = frame->v6->nexthdr;
	frame->l4 = frame->v6 + 1;
	return true;
}

/*
 * Reads the ports. Returns whether they are there: TCP or UDP, whole, without options or extensions, in the frame's
 * first buffer, its lengths as parse() wants them.
 */
static __always_inline bool read_ports(struct frame *frame)
{
	const __u8 protocol = frame->tuple.protocol;
	const __u32 size =
		frame->is_v6 ? bpf_ntohs(frame->v6->payload_len) : bpf_ntohs(frame->v4->tot_len) - sizeof(struct iphdr);
	__u32 own_size; /* by TCP's or UDP's own word, of the header or of all */

	if (!frame->is_v6 &&
	    (frame->v4->ihl != 5 || frame->v4->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)))
		return false;
	if (protocol == IPPROTO_TCP) {
		if ((void *)(frame->tcp + 1) > frame->end)
			return false;
		frame->check = &frame->tcp->check;
		own_size = frame->tcp->doff * 4;
		if (own_size < sizeof(struct tcphdr))
			return false;
		frame->tcp_flags = ((__u8 *)frame->tcp)[TCP_FLAGS_OFFSET];
	} else if (protocol == IPPROTO_UDP) {
		if ((void *)(frame->udp + 1) > frame->end)
			return false;
		frame->check = &frame->udp->check;
		own_size = bpf_ntohs(frame->udp->len);
		if (own_size < sizeof(struct udphdr))
			return false;
	} else {
		return false;
	}
	if (own_size > size || size > (__u32)(frame->end - frame->l4))
		return false;
	frame->tuple.sport_be = frame->ports[0];
	frame->tuple.dport_be = frame->ports[1];
	return true;
}

/* Whether a frame is from another node: what it sends of outside clients is handed over. */
static __always_inline bool from_a_node(const struct frame *frame)
{
	struct peer_key key = {};

	__builtin_memcpy(key.mac, frame->ethernet->h_source, ETH_ALEN);
	return bpf_map_lookup_elem(&peers, &key);
}

/* As goes_to_and_fro() of tc.c has it, of what a load balancer's address has no port for. */
static __always_inline bool is_routed_on(struct xdp_md *ctx, const struct frame *frame)
{
	struct bpf_fib_lookup route = route_between(&frame->tuple.saddr, &frame->tuple.daddr);
	int result;

	route.ifindex = ctx->ingress_ifindex;
	result = bpf_fib_lookup(ctx, &route, sizeof(route), 0);
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* Whether a destination without a frontend is of the ranges of Services, and none has it, or is a load balancer's. */
static __always_inline bool is_unallocated(struct xdp_md *ctx, const struct frame *frame)
{
	const struct address *to = &frame->tuple.daddr;
	const struct remote *remote;
	__u32 flags;

	if (pod_at(to) || node_at(to))
		return false;
	remote = remote_at(to);
	flags = address_of_service(to);
	if (of_a_node(remote) || flags & FRONTEND_CLUSTER_IP)
		return false;
	return remote || (flags && is_routed_on(ctx, frame));
}

/* What has no flow yet is TC's, but for what is to have none. */
static __always_inline int judge(struct xdp_md *ctx, const struct frame *frame)
{
	const struct frontend_key key = {
		.address = frame->tuple.daddr,
		.port_be = frame->tuple.dport_be,
		.protocol = frame->tuple.protocol,
	};
	const struct frontend *frontend;

	if (own_address(&frame->tuple.daddr) || from_a_node(frame))
		return XDP_PASS;
	frontend = bpf_map_lookup_elem(&frontends, &key);
	if (frontend && !source_allowed(frontend, &key, &frame->tuple.saddr))
		return drop_frame(ctx, frame, DROP_SOURCE_RANGE);
	if (!frontend && is_unallocated(ctx, frame))
		return drop_frame(ctx, frame, DROP_NO_SERVICE);
	return XDP_PASS;
}

/* Whether TC would do no more than translate a packet of a flow, and send it on. */
static __always_inline bool in_the_middle(const struct frame *frame, const struct flow *flow)
{
	const __u64 now = flow_clock();

	if (flow->state != FLOW_ESTABLISHED || flow->flags & (FLOW_HANDED_OVER | FLOW_RST | FLOW_FROM_HERE) ||
	    flow_expired(flow, now) ||
	    (__s64)(now - flow->seen_ns) >=
		    (__s64)REFRESH_NS) /* signed: on another CPU it may just have been seen later */
		return false;
	/* what another node sends of this client's now ends here */
	if (flow->way.kind == WAY_NODE ? from_a_node(frame) : flow->way.kind != WAY_ROUTE)
		return false;
	if (frame->tuple.protocol == IPPROTO_TCP)
		return !(frame->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
	/* UDP asks its Service with every packet */
	return flow->flags & FLOW_REPLY || (flow->backend_id && backend_exists(flow->backend_id));
}

/*
 * The MACs of the next hop of a packet that goes on as `to`. Returns whether there is one by the device by which it
 * came: a driver need not send what another one has received. A neighbour that is not known is for TC to find.
 */
static __always_inline bool find_next_hop(struct xdp_md *ctx, const struct frame *frame, const struct flow *flow,
					  const struct tuple *to, struct bpf_fib_lookup *route)
{
	struct address next_hop = to->daddr;
	struct address found;

	if (flow->way.kind == WAY_NODE)
		__builtin_memcpy(&next_hop, flow->way.end, sizeof(next_hop));
	*route = route_between(flow->way.kind == WAY_ROUTE ? &to->saddr : NULL, &next_hop);
	route->ifindex = flow->way.ifindex;
	if (bpf_fib_lookup(ctx, route, sizeof(*route), BPF_FIB_LOOKUP_OUTPUT) != BPF_FIB_LKUP_RET_SUCCESS ||
	    route->ifindex != ctx->ingress_ifindex)
		return false;
	if (flow->way.kind != WAY_NODE)
		return true;
	/* the kernel may have a router before a node of the same subnet */
	if (is_v4(&next_hop))
		return route->ipv4_dst == next_hop.word_be[3];
	__builtin_memcpy(&found, route->ipv6_dst, sizeof(found));
	return same_address(&found, &next_hop);
}

/* Makes a frame the packet that goes on as `to`, one hop further. */
static __always_inline void translate(const struct frame *frame, const struct tuple *to)
{
	const __u32 addresses = addresses_difference(&frame->tuple, to);
	__u32 ports, to_ports;
	__u16 check;

	__builtin_memcpy(&ports, &frame->tuple.sport_be, sizeof(ports));
	__builtin_memcpy(&to_ports, &to->sport_be, sizeof(to_ports));
	check = checksum_add(*frame->check, fold_to_word((__u64)addresses + word_difference(ports, to_ports)));
	if (frame->tuple.protocol == IPPROTO_TCP)
		*frame->check = check;
	else if (*frame->check) /* of UDP 0 says that there is none */
		*frame->check = check ? check : 0xffff;
	__builtin_memcpy(frame->ports, &to_ports, sizeof(to_ports));
	if (!frame->is_v6) {
		frame->v4->saddr = to->saddr.word_be[3];
		frame->v4->daddr = to->daddr.word_be[3];
		frame->v4->ttl -= 1;
		/* TTL is a word's high byte */
		frame->v4->check = checksum_add(checksum_add(frame->v4->check, addresses), (__u16)~bpf_htons(0x0100));
	} else {
		__builtin_memcpy(&frame->v6->saddr, &to->saddr, sizeof(to->saddr));
		__builtin_memcpy(&frame->v6->daddr, &to->daddr, sizeof(to->daddr));
		frame->v6->hop_limit -= 1;
	}
}

/* Whether a frame may go one hop further, by a device that takes so much. */
static __always_inline bool may_go_on(const struct frame *frame, __u32 mtu)
{
	if (frame->is_v6)
		return frame->v6->hop_limit > 1 && bpf_ntohs(frame->v6->payload_len) + sizeof(struct ipv6hdr) <= mtu;
	return frame->v4->ttl > 1 && bpf_ntohs(frame->v4->tot_len) <= mtu;
}

static __always_inline int forward(struct xdp_md *ctx, const struct frame *frame, const struct flow *flow, __u32 mtu)
{
	const struct tuple to = reverse(&flow->twin);
	struct bpf_fib_lookup route;

	if (!in_the_middle(frame, flow) || !may_go_on(frame, mtu) || !find_next_hop(ctx, frame, flow, &to, &route))
		return XDP_PASS;
	translate(frame, &to);
	__builtin_memcpy(frame->ethernet->h_dest, route.dmac, ETH_ALEN);
	__builtin_memcpy(frame->ethernet->h_source, route.smac, ETH_ALEN);
	return XDP_TX;
}

/* The loader makes it "xdp" for kernels that know no frames in several buffers. */
SEC("xdp.frags")
int calico_ebpf_xdp(struct xdp_md *ctx)
{
	struct frame frame = {};
	const struct device *device = device_at(ctx->ingress_ifindex);
	const struct flow *flow;

	if (!device || !read_addresses(ctx, &frame))
		return XDP_PASS;
	/* a switch floods, and a capture sees, frames that are for others */
	if (!same_mac(frame.ethernet->h_dest, device->mac))
		return XDP_PASS;
	if (is_denied(&frame.tuple.saddr))
		return drop_frame(ctx, &frame, DROP_DENIED);
	if (!read_ports(&frame))
		return XDP_PASS;
	flow = flow_lookup(&frame.tuple);
	return flow ? forward(ctx, &frame, flow, device->mtu) : judge(ctx, &frame);
}
