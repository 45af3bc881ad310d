/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Reads a packet's headers once, into the form in which the rest of the programs sees it. Everything that came from
 * the wire in network order stays so, and is named _be; nothing here changes the packet.
 */
#ifndef CALICO_EBPF_PARSE_H
#define CALICO_EBPF_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "maps.h"

#define TCP_FIN          0x01
#define TCP_SYN          0x02
#define TCP_RST          0x04
#define TCP_ACK          0x10
#define TCP_FLAGS_OFFSET 13

/* Of SCTP's chunks (RFC 9260, 3.2), those that open and close an association. */
#define SCTP_INIT              1
#define SCTP_INIT_ACK          2
#define SCTP_ABORT             6
#define SCTP_SHUTDOWN          7
#define SCTP_SHUTDOWN_ACK      8
#define SCTP_SHUTDOWN_COMPLETE 14

#define IPV4_DO_NOT_FRAGMENT 0x4000
#define IPV4_MORE_FRAGMENTS  0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_FRAGMENT_OFFSET 0xfff8
#define IPV6_MORE_FRAGMENTS  0x0001

#define EXTENSIONS_MAX 6

#define VLAN_ID 0x0fff

#define ICMP_ECHO_REPLY     0
#define ICMP_UNREACHABLE    3
#define ICMP_ECHO_REQUEST   8
#define ICMP_TIME_EXCEEDED  11
#define ICMP_PARAMETER      12
#define ICMPV6_UNREACHABLE  1
#define ICMPV6_PARAMETER    4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY   129

enum parse_result {
	PARSE_IP = 0,
	PARSE_NOT_IP, /* ARP and the like: the host's stack's */
};

/* Which part of a datagram a packet is. */
enum part {
	PART_WHOLE = 0,
	PART_FIRST,   /* has the ports */
	PART_KNOWN,   /* has none, but its first one came by here */
	PART_UNKNOWN, /* has none, and they are not known */
};

struct packet {
	struct tuple tuple;
	__u32 l4_offset; /* bytes from the MAC header */
	__u32 end;       /* of the packet by its own header, likewise; a frame may be padded */
	__u8 is_v6;
	__u8 ttl;         /* or hop limit */
	__u8 tcp_flags;   /* of SCTP those that say the same */
	__u8 part;        /* enum part */
	__u8 is_echo;     /* ICMP echo, request or reply */
	__u8 is_error;    /* of ICMP; once its flow is found, `tuple` is that of the flow's packets in its direction */
	__u8 quoted_size; /* of the IP header that it quotes, with the fragment header, in bytes */
	__u8 no_checksum; /* UDP that says so */
	__u32 identification;  /* of the datagram that it is a part of, as it is on the wire */
	__u32 fragment_offset; /* bytes of that datagram before it, of a later fragment */
	__u32 mtu;             /* of what it is too big for, in bytes; 0: it is not, or its sender is not to know */
};

/* Whether a packet is a fragment without transport header. */
static __always_inline bool is_later(const struct packet *packet)
{
	return packet->part >= PART_KNOWN;
}

/* Bytes between the IP headers and the packet's end. */
static __always_inline __u32 l4_size(const struct packet *packet)
{
	return packet->end - packet->l4_offset;
}

/* Whether a protocol's flows are connections, which say themselves when they begin and end. */
static __always_inline bool connects(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP;
}

/* Whether a protocol has ports, which all stand in the same place. */
static __always_inline bool has_ports(__u8 protocol)
{
	return connects(protocol) || protocol == IPPROTO_UDP;
}

/* The common header of SCTP, with the type of the first chunk: one that opens stands there. One that closes may be
 * missed behind another (RFC 9260, 3.3.7); such a flow is left to its time-out. */
struct sctp {
	__be16 source_be;
	__be16 dest_be;
	__be32 tag_be;
	__le32 checksum_le; /* CRC32c over all of the packet, no pseudo header; 0: left to the device */
	__u8 chunk;
};
#define SCTP_SIZE 13

/* An ICMP echo of either family: <linux/icmp.h> needs the C library's headers. */
struct echo {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be16 id_be;
	__be16 sequence_be;
};

/*
 * The first byte of the packet, and the byte behind the last linear one. In assembly: clang copies the 32-bit fields
 * with a zero extension, after which the verifier takes the pointer for a number ("invalid access to packet").
 */
static __always_inline void *packet_start(const struct __sk_buff *skb)
{
	void *start;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(start) : "r"(skb), "i"(offsetof(struct __sk_buff, data)));
	return start;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	void *end;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(end) : "r"(skb), "i"(offsetof(struct __sk_buff, data_end)));
	return end;
}

/* `size` linear bytes at `offset` of the packet, pulled in where they are not linear; NULL: it is shorter. */
static __always_inline void *header(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	void *start = packet_start(skb) + offset;

	if (start + size <= packet_end(skb))
		return start;
	if (bpf_skb_pull_data(skb, offset + size))
		return NULL;
	start = packet_start(skb) + offset;
	return start + size <= packet_end(skb) ? start : NULL;
}

/*
 * `size` bytes of the transport header, where neither options nor extensions stand before it: an offset that is known
 * here makes do without a helper. NULL: they do, or it is not linear.
 */
static __always_inline void *l4_header(const struct __sk_buff *skb, const struct packet *packet, __u32 size)
{
	void *start = packet_start(skb);

	if (packet->l4_offset == ETH_HLEN + sizeof(struct iphdr))
		start += ETH_HLEN + sizeof(struct iphdr);
	else if (packet->l4_offset == ETH_HLEN + sizeof(struct ipv6hdr))
		start += ETH_HLEN + sizeof(struct ipv6hdr);
	else
		return NULL;
	return start + size <= packet_end(skb) ? start : NULL;
}

/*
 * Where a packet ends that says so many bytes from `offset` on. What a device is to cut up may be larger than its
 * header can say, and says 0 (BIG TCP).
 */
static __always_inline __u32 end_of(const struct __sk_buff *skb, __u32 offset, __be16 length_be)
{
	return length_be || !skb->gso_size ? offset + bpf_ntohs(length_be) : skb->len;
}

static __always_inline int parse_v4(struct __sk_buff *skb, struct packet *packet)
{
	const struct iphdr *ip = header(skb, ETH_HLEN, sizeof(*ip));

	if (!ip)
		return -DROP_TRUNCATED;
	if (ip->version != 4 || ip->ihl < 5)
		return -DROP_BAD_HEADER;
	packet->tuple.saddr = address_v4(ip->saddr);
	packet->tuple.daddr = address_v4(ip->daddr);
	packet->tuple.protocol = ip->protocol;
	packet->ttl = ip->ttl;
	packet->l4_offset = ETH_HLEN + ip->ihl * 4;
	packet->end = end_of(skb, ETH_HLEN, ip->tot_len);
	packet->identification = ip->id;
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET)) {
		packet->part = PART_UNKNOWN;
		packet->fragment_offset = (bpf_ntohs(ip->frag_off) & IPV4_FRAGMENT_OFFSET) * 8;
	} else if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS)) {
		packet->part = PART_FIRST;
	}
	return 0;
}

struct extension {
	__u8 next;
	__u8 length;        /* in units of 8 bytes, the first not counted; of the fragment header: reserved */
	__be16 fragment_be; /* of the fragment header alone, as is what follows */
	__u32 identification;
};

/* A fragment header does not make a fragment: one that says neither offset nor more is a whole packet (RFC 6946). */
static __always_inline __u8 part_v6(__be16 field_be)
{
	if (field_be & bpf_htons(IPV6_FRAGMENT_OFFSET))
		return PART_UNKNOWN;
	return field_be & bpf_htons(IPV6_MORE_FRAGMENTS) ? PART_FIRST : PART_WHOLE;
}

static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

static __always_inline int parse_v6(struct __sk_buff *skb, struct packet *packet)
{
	const struct ipv6hdr *ip = header(skb, ETH_HLEN, sizeof(*ip));
	__u32 offset = ETH_HLEN + sizeof(*ip);
	__u8 next;

	if (!ip)
		return -DROP_TRUNCATED;
	/* What stands for an IPv4 address here is none on the wire (draft-itojun-v6ops-v4mapped-harmful). */
	if (ip->version != 6 || is_v4((const struct address *)&ip->saddr) || is_v4((const struct address *)&ip->daddr))
		return -DROP_BAD_HEADER;
	__builtin_memcpy(&packet->tuple.saddr, &ip->saddr, sizeof(struct address));
	__builtin_memcpy(&packet->tuple.daddr, &ip->daddr, sizeof(struct address));
	packet->is_v6 = 1;
	packet->end = end_of(skb, offset, ip->payload_len);
	packet->ttl = ip->hop_limit;
	next = ip->nexthdr;
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		struct extension extension;

		/* behind a later fragment's header is the datagram's middle, whatever `next` says */
		if (!is_extension(next) || is_later(packet))
			break;
		/* Not header(): a variable offset that grows in a loop is more than the verifier of 5.10 follows. */
		if (bpf_skb_load_bytes(skb, offset, &extension, sizeof(extension)))
			return -DROP_TRUNCATED;
		if (next == IPPROTO_FRAGMENT) {
			if (packet->part)
				return -DROP_BAD_HEADER; /* a fragment's fragment: which of them has which ports? */
			packet->part = part_v6(extension.fragment_be);
			packet->identification = extension.identification;
			packet->fragment_offset = bpf_ntohs(extension.fragment_be) & IPV6_FRAGMENT_OFFSET;
			offset += 8;
		} else {
			offset += 8 * (extension.length + 1);
		}
		next = extension.next;
	}
	if (is_extension(next) && !is_later(packet))
		return -DROP_BAD_HEADER; /* what it carries is not known */
	packet->tuple.protocol = next;
	packet->l4_offset = offset;
	return 0;
}

/* Of an echo, its identifier stands for the port of who asks; the other port is 0. Returns whether it is one. */
static __always_inline bool echo_ports(const struct echo *echo, bool is_v6, struct tuple *tuple)
{
	if (echo->type == (is_v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST))
		tuple->sport_be = echo->id_be;
	else if (echo->type == (is_v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY))
		tuple->dport_be = echo->id_be;
	else
		return false;
	return true;
}

/* Whether a type of ICMP message quotes a packet that went the other way. */
static __always_inline bool quotes(__u8 type, bool is_v6)
{
	if (is_v6)
		return type >= ICMPV6_UNREACHABLE && type <= ICMPV6_PARAMETER;
	return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

static __always_inline int parse_icmp(struct __sk_buff *skb, struct packet *packet)
{
	struct echo echo;

	if (l4_size(packet) < sizeof(echo) || bpf_skb_load_bytes(skb, packet->l4_offset, &echo, sizeof(echo)))
		return -DROP_TRUNCATED;
	packet->is_echo = echo_ports(&echo, packet->is_v6, &packet->tuple);
	packet->is_error = quotes(echo.type, packet->is_v6);
	return 0;
}

/* What a chunk says, as TCP says it. Of both ends one shuts down, and the other acknowledges: two FINs. */
static __always_inline __u8 sctp_flags(__u8 chunk)
{
	switch (chunk) {
	case SCTP_INIT:
		return TCP_SYN;
	case SCTP_INIT_ACK:
		return TCP_SYN | TCP_ACK;
	case SCTP_ABORT:
		return TCP_RST;
	case SCTP_SHUTDOWN:
	case SCTP_SHUTDOWN_ACK:
	case SCTP_SHUTDOWN_COMPLETE:
		return TCP_FIN | TCP_ACK;
	default:
		return TCP_ACK;
	}
}

/*
 * Whether a later fragment can be: within the largest datagram, and behind a header with which its first one is held to
 * come (RFC 1858, RFC 3128), so that it replaces nothing of what was read there. Receivers put neither together.
 */
static __always_inline bool may_follow(const struct packet *packet)
{
	return packet->fragment_offset + l4_size(packet) <= 0xffff &&
	       (packet->fragment_offset >= sizeof(struct tcphdr) || !connects(packet->tuple.protocol));
}

/* The IP headers' own word on where they and the packet end. */
static __always_inline int check_lengths(const struct __sk_buff *skb, const struct packet *packet)
{
	if (packet->l4_offset > packet->end)
		return -DROP_BAD_HEADER;
	if (packet->end > skb->len)
		return -DROP_TRUNCATED;
	return is_later(packet) && !may_follow(packet) ? -DROP_BAD_HEADER : 0;
}

static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *packet)
{
	__u8 protocol = packet->tuple.protocol;
	union {
		struct tcphdr tcp;
		struct udphdr udp;
		struct sctp sctp;
		__u8 bytes[sizeof(struct tcphdr)];
	} copied, *l4;
	__u32 size = sizeof(copied.udp);

	if (is_later(packet))
		return 0;
	if (protocol == (packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return parse_icmp(skb, packet);
	if (!has_ports(protocol))
		return 0;
	if (protocol == IPPROTO_TCP)
		size = sizeof(copied.tcp);
	else if (protocol == IPPROTO_SCTP)
		size = SCTP_SIZE;
	if (l4_size(packet) < size)
		return -DROP_TRUNCATED;
	l4 = l4_header(skb, packet, sizeof(copied));
	if (!l4) {
		if (bpf_skb_load_bytes(skb, packet->l4_offset, &copied, size))
			return -DROP_TRUNCATED;
		l4 = &copied;
	}
	if (protocol == IPPROTO_TCP) {
		size = l4->tcp.doff * 4;
		if (size < sizeof(l4->tcp))
			return -DROP_BAD_HEADER;
		packet->tcp_flags = l4->bytes[TCP_FLAGS_OFFSET];
	} else if (protocol == IPPROTO_SCTP) {
		packet->tcp_flags = sctp_flags(l4->sctp.chunk);
	} else {
		size = bpf_ntohs(l4->udp.len);
		if (size < sizeof(l4->udp))
			return -DROP_BAD_HEADER;
		packet->no_checksum = !l4->udp.check;
	}
	/* of a datagram's first fragment it is in the others */
	if (size > l4_size(packet) && !packet->part)
		return -DROP_BAD_HEADER;
	packet->tuple.sport_be = l4->tcp.source; /* the others' ports stand where TCP's do */
	packet->tuple.dport_be = l4->tcp.dest;
	return 0;
}

/* The VLAN of a frame, out of which the kernel has taken the tag by now; 0: none, or a tag of priority alone. */
static __always_inline __u32 vlan(const struct __sk_buff *skb)
{
	return skb->vlan_present ? skb->vlan_tci & VLAN_ID : 0;
}

/* Fills in `packet`, zeroed by the caller; not for XDP, which has no skb. Returns PARSE_IP, PARSE_NOT_IP, or a negated
 * drop reason. */
__attribute__((unused)) static __noinline int parse(struct __sk_buff *skb, struct packet *packet)
{
	int error;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		error = parse_v4(skb, packet);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		error = parse_v6(skb, packet);
	else
		return PARSE_NOT_IP;
	if (!error)
		error = check_lengths(skb, packet);
	return error ? error : parse_l4(skb, packet);
}

#endif
