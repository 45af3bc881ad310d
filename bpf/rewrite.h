/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Changes addresses, ports and TTL of a packet, and its checksums by what changed.
 *
 * Packets of local sockets carry partial checksums: the pseudo header's sum, which changes with the addresses and not
 * with the ports. bpf_l4_csum_replace() knows, if it is told which is which (BPF_F_PSEUDO_HDR). It also invalidates
 * every pointer into the packet, so the headers are written first.
 */
#ifndef CALICO_EBPF_REWRITE_H
#define CALICO_EBPF_REWRITE_H

#include <linux/bpf.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "crc32c.h"
#include "icmp_error.h"
#include "parse.h"

static __always_inline int rewrite_addresses(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
					     __u32 difference)
{
	struct iphdr *ip;

	/* TCP's, UDP's and ICMPv6's checksums make up for the addresses in the device's sum over the whole packet, but
	 * are replaced as if they did not, which is so for IPv4: the change of the addresses has to be added to it. */
	if (packet->is_v6)
		return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), &to->saddr,
					   2 * sizeof(struct address), BPF_F_RECOMPUTE_CSUM);
	ip = header(skb, ETH_HLEN, sizeof(*ip));
	if (!ip)
		return -DROP_REWRITE_FAILED;
	ip->saddr = to->saddr.word_be[3];
	ip->daddr = to->daddr.word_be[3];
	ip->check = checksum_add(ip->check, difference);
	return 0;
}

/* An echo's identifier is the one port that is not 0; only ICMPv6 covers the addresses. */
static __always_inline int rewrite_echo(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
					__u32 difference)
{
	__u32 checksum = packet->l4_offset + offsetof(struct echo, checksum);
	__be16 old = packet->tuple.sport_be | packet->tuple.dport_be;
	__be16 new = to->sport_be | to->dport_be;

	if (packet->is_v6 && bpf_l4_csum_replace(skb, checksum, 0, difference, BPF_F_PSEUDO_HDR))
		return -DROP_REWRITE_FAILED;
	if (old == new)
		return 0;
	if (bpf_l4_csum_replace(skb, checksum, old, new, sizeof(new)))
		return -DROP_REWRITE_FAILED;
	if (bpf_skb_store_bytes(skb, packet->l4_offset + offsetof(struct echo, id_be), &new, sizeof(new), 0))
		return -DROP_REWRITE_FAILED;
	return 0;
}

/* Ports that no checksum makes up for change the device's sum over the whole packet. */
static __always_inline int store_ports(struct __sk_buff *skb, const struct packet *packet, const __be16 ports[2])
{
	__u32 *there = packet->no_checksum ? NULL : l4_header(skb, packet, sizeof(*there));

	if (there) {
		*there = *(__u32 *)ports;
		return 0;
	}
	return bpf_skb_store_bytes(skb, packet->l4_offset, ports, 2 * sizeof(ports[0]),
				   packet->no_checksum ? BPF_F_RECOMPUTE_CSUM : 0);
}

static __always_inline int rewrite_ports(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to,
					 __u32 difference)
{
	bool tcp = packet->tuple.protocol == IPPROTO_TCP;
	__u32 checksum = packet->l4_offset + (tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
	__u64 flags = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	__be16 old_ports[2] = {packet->tuple.sport_be, packet->tuple.dport_be};
	__be16 new_ports[2] = {to->sport_be, to->dport_be};

	if (*(__u32 *)old_ports != *(__u32 *)new_ports) {
		if (store_ports(skb, packet, new_ports))
			return -DROP_REWRITE_FAILED;
		if (bpf_l4_csum_replace(skb, checksum, *(__u32 *)old_ports, *(__u32 *)new_ports,
					flags | sizeof(new_ports)))
			return -DROP_REWRITE_FAILED;
	}
	return bpf_l4_csum_replace(skb, checksum, 0, difference, BPF_F_PSEUDO_HDR | flags) ? -DROP_REWRITE_FAILED : 0;
}

/* SCTP's checksum covers no addresses, and all of a datagram: the ports of one in fragments cannot be changed. */
static __always_inline int rewrite_sctp(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	const __u32 checksum_at = packet->l4_offset + offsetof(struct sctp, checksum_le);
	const __be16 old_ports[2] = {packet->tuple.sport_be, packet->tuple.dport_be};
	const __be16 new_ports[2] = {to->sport_be, to->dport_be};
	const __u32 changed = *(__u32 *)old_ports ^ *(__u32 *)new_ports;
	__u32 checksum;

	if (!changed)
		return 0;
	if (packet->part)
		return -DROP_REWRITE_FAILED;
	if (bpf_skb_load_bytes(skb, checksum_at, &checksum, sizeof(checksum)))
		return -DROP_REWRITE_FAILED;
	if (bpf_skb_store_bytes(skb, packet->l4_offset, new_ports, sizeof(new_ports), BPF_F_RECOMPUTE_CSUM))
		return -DROP_REWRITE_FAILED;
	if (!checksum)
		return 0;
	checksum ^= crc32c_difference(changed, packet->end - packet->l4_offset);
	if (bpf_skb_store_bytes(skb, checksum_at, &checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM))
		return -DROP_REWRITE_FAILED;
	return 0;
}

/* Of later fragments the addresses, as the first one has the ports, and the checksum over all of them. */
static __noinline int rewrite_packet(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	__u32 difference = addresses_difference(&packet->tuple, to);

	if (rewrite_addresses(skb, packet, to, difference))
		return -DROP_REWRITE_FAILED;
	if (is_later(packet))
		return 0;
	if (packet->is_echo)
		return rewrite_echo(skb, packet, to, difference);
	if (packet->tuple.protocol == IPPROTO_SCTP)
		return rewrite_sctp(skb, packet, to);
	return rewrite_ports(skb, packet, to, difference);
}

/* Makes the packet that came as packet->tuple go on as `to`. Returns 0 or -DROP_REWRITE_FAILED. */
static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	if (same_tuple(&packet->tuple, to))
		return 0;
	return packet->is_error ? rewrite_error(skb, packet, to) : rewrite_packet(skb, packet, to);
}

/* The TTL or hop limit. Returns 0 or -DROP_REWRITE_FAILED. */
static __always_inline int set_ttl(struct __sk_buff *skb, const struct packet *packet, __u8 ttl)
{
	if (packet->is_v6) {
		/* no checksum covers it, but the device's sum over the whole packet does */
		if (bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &ttl, 1,
					BPF_F_RECOMPUTE_CSUM))
			return -DROP_REWRITE_FAILED;
	} else {
		struct iphdr *ip = header(skb, ETH_HLEN, sizeof(*ip));

		if (!ip)
			return -DROP_REWRITE_FAILED;
		/* TTL is a word's high byte */
		ip->check = checksum_add(ip->check, bpf_htons(ttl << 8) + (__u16)~bpf_htons(ip->ttl << 8));
		ip->ttl = ttl;
	}
	return 0;
}

/* One hop off a TTL that is not used up. */
static __always_inline int rewrite_ttl(struct __sk_buff *skb, const struct packet *packet)
{
	return set_ttl(skb, packet, packet->ttl - 1);
}

static __always_inline int rewrite_macs(struct __sk_buff *skb, const __u8 *to, const __u8 *from)
{
	struct ethhdr *ethernet = header(skb, 0, sizeof(*ethernet));

	if (!ethernet)
		return -DROP_REWRITE_FAILED;
	__builtin_memcpy(ethernet->h_dest, to, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, from, ETH_ALEN);
	return 0;
}

#endif
