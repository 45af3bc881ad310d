/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Turns a packet into its own refusal: a TCP RST (RFC 9293, 3.10.7.1), or ICMP port unreachable (RFC 792, RFC 4443),
 * from the address that the client talked to; or into what a router says of it: that it is too big (from there as well:
 * a client's firewall may let nobody else speak), or that its TTL has run out, from this node's own address, which is
 * what traceroute is to show. The caller sends it back where it came from.
 */
#ifndef CALICO_EBPF_REFUSE_H
#define CALICO_EBPF_REFUSE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "device.h"
#include "parse.h"
#include "rewrite.h"
#include "table.h"
#include "work.h"

#define REFUSAL_TTL 64
#define QUOTED_L4   8 /* bytes of the refused packet's transport header in an ICMP error: the ports are among them */

/* Of an error: <linux/icmp.h> needs the C library's headers. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 mtu_be; /* else 0 */
};

#define ICMP_UNREACHABLE_PORT   3
#define ICMP_UNREACHABLE_SIZE   4
#define ICMPV6_UNREACHABLE_PORT 4
#define ICMPV6_TOO_BIG          2
#define ICMPV6_TIME_EXCEEDED    3

struct rst_v4 {
	struct iphdr ip;
	struct tcphdr tcp;
};

struct rst_v6 {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

#define IPV4_HEADER_MAX  60
#define IPV6_HEADERS_MAX 64 /* with extensions: those of a packet with more are not quoted */

struct unreachable_v4 {
	struct iphdr ip;
	struct icmp_error icmp;
	__u8 quoted[IPV4_HEADER_MAX + QUOTED_L4];
};

struct unreachable_v6 {
	struct ipv6hdr ip;
	struct icmp_error icmp;
	__u8 quoted[IPV6_HEADERS_MAX + QUOTED_L4];
};

/* Built as they go onto the wire: no padding. */
_Static_assert(sizeof(struct rst_v4) == 40 && sizeof(struct rst_v6) == 60, "layout of the RST");
_Static_assert(sizeof(struct unreachable_v4) == 96 && sizeof(struct unreachable_v6) == 120, "layout of the ICMP error");

/* What the checksums of TCP and ICMPv6 cover besides their own bytes; IPv4 addresses count as v4-mapped ones do. */
struct pseudo_header {
	struct address saddr;
	struct address daddr;
	__be32 length_be;
	__be32 protocol_be;
};

static __always_inline __u32 pseudo_sum(const struct tuple *tuple, __u32 length, __u8 protocol)
{
	struct pseudo_header pseudo = {
		.saddr = tuple->saddr,
		.daddr = tuple->daddr,
		.length_be = bpf_htonl(length),
		.protocol_be = bpf_htonl(protocol),
	};

	return bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
}

/* The checksum of `size` bytes whose checksum field is 0, on top of the sum `seed`. */
static __always_inline __u16 checksum(void *bytes, __u32 size, __u32 seed)
{
	return checksum_add(0xffff, bpf_csum_diff(NULL, 0, bytes, size, seed));
}

static __always_inline void fill_v4(struct iphdr *ip, const struct tuple *tuple, __u8 protocol, __u16 length)
{
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tot_len = bpf_htons(length),
		.frag_off = bpf_htons(0x4000), /* do not fragment */
		.ttl = REFUSAL_TTL,
		.protocol = protocol,
		.saddr = tuple->saddr.word_be[3],
		.daddr = tuple->daddr.word_be[3],
	};
	ip->check = checksum(ip, sizeof(*ip), 0);
}

static __always_inline void fill_v6(struct ipv6hdr *ip, const struct tuple *tuple, __u8 protocol, __u16 length)
{
	*ip = (struct ipv6hdr){
		.version = 6,
		.payload_len = bpf_htons(length),
		.nexthdr = protocol,
		.hop_limit = REFUSAL_TTL,
	};
	__builtin_memcpy(&ip->saddr, &tuple->saddr, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &tuple->daddr, sizeof(ip->daddr));
}

/* How many sequence numbers the segment takes: its payload, SYN and FIN. */
static __always_inline __u32 segment_length(const struct packet *packet, const struct tcphdr *tcp)
{
	return packet->end - packet->l4_offset - tcp->doff * 4 + tcp->syn + tcp->fin;
}

static __always_inline void fill_rst(struct __sk_buff *skb, const struct packet *packet, const struct tuple *back,
				     struct tcphdr *tcp)
{
	struct tcphdr refused = {};

	bpf_skb_load_bytes(skb, packet->l4_offset, &refused, sizeof(refused));
	*tcp = (struct tcphdr){
		.source = back->sport_be,
		.dest = back->dport_be,
		.doff = sizeof(*tcp) / 4,
		.rst = 1,
	};
	if (refused.ack) {
		tcp->seq = refused.ack_seq;
	} else {
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(bpf_ntohl(refused.seq) + segment_length(packet, &refused));
	}
	tcp->check = checksum(tcp, sizeof(*tcp), pseudo_sum(back, sizeof(*tcp), IPPROTO_TCP));
}

/* What a router says of a packet that it does not send on, by ICMP whatever the protocol is. */
static __always_inline bool said_on_the_way(int reason)
{
	return reason == -DROP_TOO_BIG || reason == -DROP_TTL_EXPIRED;
}

static __always_inline struct icmp_error error_v4(const struct packet *packet, int reason)
{
	struct icmp_error error = {.type = ICMP_UNREACHABLE, .code = ICMP_UNREACHABLE_PORT};

	if (reason == -DROP_TTL_EXPIRED)
		return (struct icmp_error){.type = ICMP_TIME_EXCEEDED};
	if (reason == -DROP_TOO_BIG) {
		error.code = ICMP_UNREACHABLE_SIZE;
		error.mtu_be = bpf_htonl(packet->mtu);
	}
	return error;
}

static __always_inline struct icmp_error error_v6(const struct packet *packet, int reason)
{
	if (reason == -DROP_TTL_EXPIRED)
		return (struct icmp_error){.type = ICMPV6_TIME_EXCEEDED};
	if (reason == -DROP_TOO_BIG)
		return (struct icmp_error){.type = ICMPV6_TOO_BIG, .mtu_be = bpf_htonl(packet->mtu)};
	return (struct icmp_error){.type = ICMPV6_UNREACHABLE, .code = ICMPV6_UNREACHABLE_PORT};
}

/*
 * Whether a packet's checksum is still to be written (CHECKSUM_PARTIAL): by a device, or by the kernel before one that
 * does not. So it is with what GRO has put together, and with what its sender has left so: a pod, the host, a virtual
 * machine on the same hypervisor. No field says it, but what helpers of the other states have to say does.
 */
static __always_inline bool is_unfinished(struct __sk_buff *skb)
{
	bpf_csum_level(skb, BPF_CSUM_LEVEL_INC);                /* what nobody has summed up counts as right now, */
	return bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0 && /* nobody has found it right, */
	       bpf_csum_update(skb, 0) < 0;                     /* and no device has summed it up */
}

/*
 * Makes a packet `size` bytes long, of which all behind the Ethernet header are then to be written.
 *
 * What is unfinished would stay so: whoever finishes it sums up all behind the place where the old transport header
 * began, and writes that into the middle of the reply. The kernel gives that up once the place has been cut off: behind
 * the Ethernet header so many bytes go that it is before the packet. Kernels of before 2023 look for that before they
 * cut, hence twice.
 * Returns 0, or else not: it would not be as it was written.
 */
static __always_inline int resize(struct __sk_buff *skb, const struct packet *packet, __u32 size)
{
	const __s32 first = packet->l4_offset + sizeof(__u16), second = sizeof(__u16);

	if (!is_unfinished(skb))
		return bpf_skb_change_tail(skb, size, 0);
	return bpf_skb_change_tail(skb, size + first + second, 0) ||
	       bpf_skb_adjust_room(skb, -first, BPF_ADJ_ROOM_MAC, 0) ||
	       bpf_skb_adjust_room(skb, -second, BPF_ADJ_ROOM_MAC, 0) || is_unfinished(skb);
}

/* The packet becomes its Ethernet header, reversed, and `size` bytes of `reply`, which has `max`. */
static __always_inline int replace(struct __sk_buff *skb, const struct packet *packet, const void *reply, __u64 size,
				   __u64 max)
{
	struct ethhdr ethernet;

	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)))
		return -DROP_REWRITE_FAILED;
	if (resize(skb, packet, ETH_HLEN + size))
		return -DROP_REWRITE_FAILED;
	/*
	 * The verifier of 6.1 has forgotten by now what it knew of a size that was on the stack: "invalid zero-sized
	 * read". It is to be told of the register that the size is in; clang would compare another.
	 */
	size -= 1;
	asm volatile("" : "+r"(size));
	if (size >= max)
		return -DROP_REWRITE_FAILED;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, reply, size + 1, BPF_F_INVALIDATE_HASH | BPF_F_RECOMPUTE_CSUM))
		return -DROP_REWRITE_FAILED;
	return rewrite_macs(skb, ethernet.h_source, ethernet.h_dest);
}

static __noinline int refuse_tcp_v4(struct __sk_buff *skb, const struct packet *packet)
{
	struct tuple back = reverse(&packet->tuple);
	struct rst_v4 reply;

	fill_v4(&reply.ip, &back, IPPROTO_TCP, sizeof(reply));
	fill_rst(skb, packet, &back, &reply.tcp);
	return replace(skb, packet, &reply, sizeof(reply), sizeof(reply));
}

static __noinline int refuse_tcp_v6(struct __sk_buff *skb, const struct packet *packet)
{
	struct tuple back = reverse(&packet->tuple);
	struct rst_v6 reply;

	fill_v6(&reply.ip, &back, IPPROTO_TCP, sizeof(reply.tcp));
	fill_rst(skb, packet, &back, &reply.tcp);
	return replace(skb, packet, &reply, sizeof(reply), sizeof(reply));
}

static __noinline int refuse_other_v4(struct __sk_buff *skb, const struct packet *packet, int reason,
				      const struct address *from)
{
	struct tuple back = {.saddr = *from, .daddr = packet->tuple.saddr};
	struct unreachable_v4 reply = {.icmp = error_v4(packet, reason)};
	__u32 quoted = packet->l4_offset - ETH_HLEN + QUOTED_L4; /* options are quoted as well */
	__u32 length = sizeof(reply) - sizeof(reply.quoted) + quoted;

	if (quoted < sizeof(struct iphdr) + QUOTED_L4 || quoted > sizeof(reply.quoted))
		return -DROP_BAD_HEADER;
	fill_v4(&reply.ip, &back, IPPROTO_ICMP, length);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, reply.quoted, quoted))
		return -DROP_TRUNCATED;
	reply.icmp.checksum = checksum(&reply.icmp, sizeof(reply) - sizeof(reply.ip), 0); /* zeros add nothing */
	return replace(skb, packet, &reply, length, sizeof(reply));
}

static __noinline int refuse_other_v6(struct __sk_buff *skb, const struct packet *packet, int reason,
				      const struct address *from)
{
	struct tuple back = {.saddr = *from, .daddr = packet->tuple.saddr};
	struct unreachable_v6 reply = {.icmp = error_v6(packet, reason)};
	__u32 quoted = packet->l4_offset - ETH_HLEN + QUOTED_L4; /* without its ports nobody knows what it is about */
	__u32 length = sizeof(reply.icmp) + quoted;

	if (quoted < sizeof(struct ipv6hdr) + QUOTED_L4 || quoted > sizeof(reply.quoted))
		return -DROP_BAD_HEADER;
	fill_v6(&reply.ip, &back, IPPROTO_ICMPV6, length);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, reply.quoted, quoted))
		return -DROP_TRUNCATED;
	reply.icmp.checksum = checksum(&reply.icmp, sizeof(reply) - sizeof(reply.ip),
				       pseudo_sum(&back, length, IPPROTO_ICMPV6)); /* zeros add nothing */
	return replace(skb, packet, &reply, sizeof(reply.ip) + length, sizeof(reply));
}

/* Whether there may be one who sends from an address: it is neither a group's, nor unspecified, nor a host's own. */
static __always_inline bool may_be_answered(const struct address *address)
{
	__u8 first = bpf_ntohl(is_v4(address) ? address->word_be[3] : address->word_be[0]) >> 24;

	if (is_v4(address))
		return first && first != 127 && first < 224;
	return first != 0xff && !is_unspecified(address) && !loopback(address);
}

/*
 * Who sends ICMP errors limits them (RFC 1812, 4.3.2.8; RFC 4443, 2.4): anybody can have it speak to anybody. So often
 * a second on each CPU, and so many at once: of what is said on the way, on which path MTU discovery hangs, and of
 * refusals, each. RSTs are not limited, as with Linux: a client waits for one.
 */
#define ERROR_INTERVAL_NS (SECOND_NS / 1000)
#define ERRORS_AT_ONCE    100

static __always_inline bool within_limit(struct work *work, int reason)
{
	__u64 *next_ns = &work->next_error_ns[said_on_the_way(reason)];
	__u64 now = flow_clock();

	if (*next_ns < now)
		*next_ns = now;
	if (*next_ns - now > ERRORS_AT_ONCE * ERROR_INTERVAL_NS)
		return false;
	*next_ns += ERROR_INTERVAL_NS;
	return true;
}

/*
 * Turns work->packet, an echo request, into its answer, as long as it is whole. A global function, as flow_try() is.
 * Returns 0 or a negated drop reason.
 */
__noinline int answer_echo(struct __sk_buff *skb)
{
	struct work *work = current_work();
	const struct packet *packet;
	struct ethhdr ethernet;
	struct tuple back;
	union {
		__u8 type;
		__u16 word; /* with the code, as the checksum covers it */
	} asked, reply;

	if (!work)
		return -DROP_REWRITE_FAILED;
	packet = &work->packet;
	if (packet->part)
		return -DROP_FRAGMENT;
	if (bpf_skb_load_bytes(skb, packet->l4_offset, &asked, sizeof(asked)) ||
	    bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)))
		return -DROP_TRUNCATED;
	if (asked.type != (packet->is_v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST) ||
	    !may_be_answered(&packet->tuple.saddr))
		return -DROP_NO_SUCH_PORT;
	reply = asked;
	reply.type = packet->is_v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY;
	back = reverse(&packet->tuple);
	if (rewrite_addresses(skb, packet, &back, 0) || set_ttl(skb, packet, REFUSAL_TTL) ||
	    bpf_l4_csum_replace(skb, packet->l4_offset + offsetof(struct echo, checksum), asked.word, reply.word,
				sizeof(reply.word)) ||
	    bpf_skb_store_bytes(skb, packet->l4_offset, &reply.type, sizeof(reply.type), 0) ||
	    rewrite_macs(skb, ethernet.h_source, ethernet.h_dest))
		return -DROP_REWRITE_FAILED;
	return 0;
}

/* Whether a refusal may be sent: never to an RST, a later fragment, or what may be an ICMP error (RFC 1122, 3.2.2). */
static __always_inline bool may_be_refused(const struct packet *packet)
{
	__u8 icmp = packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;

	return !(packet->tcp_flags & TCP_RST) && !is_later(packet) && !packet->is_error &&
	       (packet->tuple.protocol != icmp || packet->is_echo) && may_be_answered(&packet->tuple.saddr);
}

/*
 * Turns work->packet into its refusal. A global function, as flow_try() is.
 * Returns 0; or, where none is to be sent or can be made, a negated drop reason.
 */
__noinline int refuse(struct __sk_buff *skb, int reason)
{
	struct work *work = current_work();
	const struct packet *packet;
	const struct address *from;
	int error;

	if (!work)
		return reason;
	packet = &work->packet;
	from = &packet->tuple.daddr;
	if (!may_be_refused(packet) || (reason == -DROP_TOO_BIG && !packet->mtu))
		return reason;
	if (reason == -DROP_TTL_EXPIRED)
		from = own_address_there(skb, packet->is_v6);
	if (!from)
		return reason;
	if (packet->tuple.protocol == IPPROTO_TCP && !said_on_the_way(reason))
		error = packet->is_v6 ? refuse_tcp_v6(skb, packet) : refuse_tcp_v4(skb, packet);
	else if (!within_limit(work, reason))
		error = reason;
	else
		error = packet->is_v6 ? refuse_other_v6(skb, packet, reason, from)
				      : refuse_other_v4(skb, packet, reason, from);
	if (!error)
		count(COUNTER_REFUSALS);
	return error;
}

#endif
