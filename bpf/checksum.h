/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Internet checksums (RFC 1071) after changes of what they cover: RFC 1624. */
#ifndef CALICO_EBPF_CHECKSUM_H
#define CALICO_EBPF_CHECKSUM_H

#include <linux/types.h>

#include "abi.h"

/* An internet checksum after a change of the words that it covers, as bpf_csum_diff() gives it. */
static __always_inline __u16 checksum_add(__u16 checksum, __u32 difference)
{
	__u32 sum = (__u16)~checksum + (difference & 0xffff) + (difference >> 16);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 fold_to_word(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum + (sum >> 32);
}

/* What changes add to a checksum, as bpf_csum_diff() gives it: in C it takes a third of the time. */
static __always_inline __u32 word_difference(__u32 from, __u32 to)
{
	return fold_to_word((__u64)to + (__u32)~from);
}

static __always_inline __u64 address_sum(__u64 sum, const struct address *from, const struct address *to)
{
	for (int i = 0; i < 4; i++)
		sum += (__u64)to->word_be[i] + (__u32)~from->word_be[i];
	return sum;
}

static __always_inline __u32 address_difference(const struct address *from, const struct address *to)
{
	return fold_to_word(address_sum(0, from, to));
}

/* Of both addresses. */
static __always_inline __u32 addresses_difference(const struct tuple *from, const struct tuple *to)
{
	return fold_to_word(address_sum(address_sum(0, &from->saddr, &to->saddr), &from->daddr, &to->daddr));
}

#endif
