/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ICMP errors quote the packet that they are about: its IP header, and eight bytes of what came behind that or more
 * (RFC 792, RFC 4443). Where that packet was of a flow, its sender is to see in the quote what it has sent, and the
 * error is to reach it as an answer of the flow does (RFC 5508).
 */
#ifndef CALICO_EBPF_ICMP_ERROR_H
#define CALICO_EBPF_ICMP_ERROR_H

#include <linux/bpf.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "parse.h"

/* Bytes of an ICMP error before what it quotes. */
#define ICMP_ERROR_SIZE 8

/* Fills in the tuple of what is quoted, and quoted_size. Returns 0, or -1: it is no packet that could have a flow. */
static __noinline int parse_quoted(struct __sk_buff *skb, struct packet *packet, struct tuple *quoted)
{
	const __u32 offset = packet->l4_offset + ICMP_ERROR_SIZE;
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;
	struct extension extension;
	union {
		struct echo echo;
		__be16 ports[2];
	} l4;

	if (packet->is_v6) {
		if (bpf_skb_load_bytes(skb, offset, &ip.v6, sizeof(ip.v6)) || ip.v6.version != 6)
			return -1;
		__builtin_memcpy(&quoted->saddr, &ip.v6.saddr, sizeof(struct address));
		__builtin_memcpy(&quoted->daddr, &ip.v6.daddr, sizeof(struct address));
		if (is_v4(&quoted->saddr))
			return -1; /* it would stand for an IPv4 packet */
		quoted->protocol = ip.v6.nexthdr;
		packet->quoted_size = sizeof(ip.v6);
		if (quoted->protocol == IPPROTO_FRAGMENT) {
			if (bpf_skb_load_bytes(skb, offset + sizeof(ip.v6), &extension, sizeof(extension)) ||
			    part_v6(extension.fragment_be) == PART_UNKNOWN)
				return -1;
			quoted->protocol = extension.next;
			packet->quoted_size += sizeof(extension);
		}
	} else {
		if (bpf_skb_load_bytes(skb, offset, &ip.v4, sizeof(ip.v4)) || ip.v4.version != 4 || ip.v4.ihl < 5 ||
		    ip.v4.frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET))
			return -1;
		quoted->saddr = address_v4(ip.v4.saddr);
		quoted->daddr = address_v4(ip.v4.daddr);
		quoted->protocol = ip.v4.protocol;
		packet->quoted_size = ip.v4.ihl * 4;
	}
	if (offset + packet->quoted_size + sizeof(l4) > packet->end ||
	    bpf_skb_load_bytes(skb, offset + packet->quoted_size, &l4, sizeof(l4)))
		return -1;
	if (has_ports(quoted->protocol)) {
		quoted->sport_be = l4.ports[0];
		quoted->dport_be = l4.ports[1];
		return 0;
	}
	if (quoted->protocol != (packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return -1;
	return echo_ports(&l4.echo, packet->is_v6, quoted) ? 0 : -1;
}

/* Where the checksum of the quoted transport header stands; 0: it is not quoted, or says nothing of what is. */
static __always_inline __u32 quoted_checksum(const struct packet *packet)
{
	__u32 at = packet->l4_offset + ICMP_ERROR_SIZE + packet->quoted_size;

	switch (packet->tuple.protocol) {
	case IPPROTO_TCP:
		at += offsetof(struct tcphdr, check);
		break;
	case IPPROTO_UDP:
		at += offsetof(struct udphdr, check);
		break;
	case IPPROTO_SCTP: /* over all of a packet that is here in part */
		return 0;
	default:
		at += offsetof(struct echo, checksum);
	}
	return at + sizeof(__u16) <= packet->end ? at : 0;
}

/*
 * Changes the transport header that an ICMP error quotes, and the error's own checksum with it. What is quoted went the
 * other way: its source is the destination of packet->tuple.
 */
static __always_inline int rewrite_quoted_l4(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
					     __u32 sources, __u32 destinations, __u16 *own_checksum)
{
	const __u32 offset = packet->l4_offset + ICMP_ERROR_SIZE + packet->quoted_size;
	const __be16 old_ports[2] = {packet->tuple.dport_be, packet->tuple.sport_be};
	const __be16 new_ports[2] = {to->dport_be, to->sport_be};
	const __be16 identifier = to->sport_be | to->dport_be;
	const __u32 difference = word_difference(*(__u32 *)old_ports, *(__u32 *)new_ports);
	const __u32 checksum_at = quoted_checksum(packet);
	const bool ports = has_ports(packet->tuple.protocol);
	__u16 old, new;
	int error;

	*own_checksum = checksum_add(*own_checksum, difference);
	if (ports)
		error = bpf_skb_store_bytes(skb, offset, new_ports, sizeof(new_ports), BPF_F_RECOMPUTE_CSUM);
	else
		error = bpf_skb_store_bytes(skb, offset + offsetof(struct echo, id_be), &identifier, sizeof(identifier),
					    BPF_F_RECOMPUTE_CSUM);
	if (error)
		return -DROP_REWRITE_FAILED;
	if (!checksum_at || bpf_skb_load_bytes(skb, checksum_at, &old, sizeof(old)))
		return 0;
	if (packet->tuple.protocol == IPPROTO_UDP && !old)
		return 0;
	new = checksum_add(old, difference);
	if (ports || packet->is_v6)
		new = checksum_add(checksum_add(new, sources), destinations);
	if (packet->tuple.protocol == IPPROTO_UDP && !new)
		new = 0xffff;
	*own_checksum = checksum_add(*own_checksum, word_difference(old, new));
	return bpf_skb_store_bytes(skb, checksum_at, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM) ? -DROP_REWRITE_FAILED
											      : 0;
}

/* Whether what reports an error is the flow's other end itself, not somebody on the way. */
static __always_inline bool of_other_end(struct __sk_buff *skb, const struct packet *packet)
{
	struct address address = packet->tuple.saddr;
	__u32 offset = ETH_HLEN + (packet->is_v6 ? offsetof(struct ipv6hdr, saddr) : offsetof(struct iphdr, saddr));

	if (packet->is_v6 ? bpf_skb_load_bytes(skb, offset, &address, sizeof(address))
			  : bpf_skb_load_bytes(skb, offset, &address.word_be[3], sizeof(address.word_be[3])))
		return false;
	return same_address(&address, &packet->tuple.saddr);
}

/*
 * Changes an address of the IP header at `at`, and that header's checksum, where it has one, by `difference`.
 * Returns 0 or a negated errno.
 */
static __always_inline int change_address(struct __sk_buff *skb, const struct packet *packet, __u32 at, bool source,
					  const struct address *to, __u32 difference)
{
	__u16 checksum;
	int error;

	if (packet->is_v6) {
		at += source ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr);
		return bpf_skb_store_bytes(skb, at, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM);
	}
	error = bpf_skb_load_bytes(skb, at + offsetof(struct iphdr, check), &checksum, sizeof(checksum));
	if (error)
		return error;
	checksum = checksum_add(checksum, difference);
	error = bpf_skb_store_bytes(skb, at + offsetof(struct iphdr, check), &checksum, sizeof(checksum),
				    BPF_F_RECOMPUTE_CSUM);
	at += source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr);
	return error | bpf_skb_store_bytes(skb, at, &to->word_be[3], sizeof(to->word_be[3]), BPF_F_RECOMPUTE_CSUM);
}

/*
 * Makes an ICMP error of a flow go on as a packet of the flow would, as `to`, and what it quotes what its receiver has
 * sent: that went the other way. Who reports it keeps its address, unless it is the flow's other end.
 * Returns 0 or -DROP_REWRITE_FAILED.
 */
static __noinline int rewrite_error(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	const __u32 checksum_at = packet->l4_offset + offsetof(struct echo, checksum);
	const __u32 quoted_at = packet->l4_offset + ICMP_ERROR_SIZE;
	const __u32 sources = address_difference(&packet->tuple.saddr, &to->saddr);
	const __u32 destinations = address_difference(&packet->tuple.daddr, &to->daddr);
	const bool from_other_end = of_other_end(skb, packet);
	__u16 checksum;
	int error;

	if (bpf_skb_load_bytes(skb, checksum_at, &checksum, sizeof(checksum)))
		return -DROP_REWRITE_FAILED;
	error = rewrite_quoted_l4(skb, packet, to, sources, destinations, &checksum);
	error |= change_address(skb, packet, quoted_at, true, &to->daddr, destinations);
	error |= change_address(skb, packet, quoted_at, false, &to->saddr, sources);
	error |= change_address(skb, packet, ETH_HLEN, false, &to->daddr, destinations);
	if (from_other_end)
		error |= change_address(skb, packet, ETH_HLEN, true, &to->saddr, sources);
	/* In IPv4 the checksum of the quoted header makes up for its addresses, and the outer ones are not covered. */
	if (packet->is_v6) {
		checksum = checksum_add(checksum_add(checksum, sources), destinations);
		checksum = checksum_add(checksum_add(checksum, from_other_end ? sources : 0), destinations);
	}
	error |= bpf_skb_store_bytes(skb, checksum_at, &checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM);
	return error ? -DROP_REWRITE_FAILED : 0;
}

#endif
