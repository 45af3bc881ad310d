/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * CRC32c, SCTP's checksum (RFC 9260, appendix A), after a change of a packet's first four bytes. It is linear: the
 * checksums of two packets differ by that of their difference, which begins with what changed and ends in zeros.
 */
#ifndef CALICO_EBPF_CRC32C_H
#define CALICO_EBPF_CRC32C_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The polynomial, and polynomials modulo it: bit 31 is the coefficient of 1. */
#define CRC32C_POLYNOMIAL 0x82f63b78
#define CRC32C_LENGTHS    16 /* bits of a packet's length */

/* x^(8 * 2^k): what 2^k bytes behind a change multiply its difference by. */
static const __u32 crc32c_powers[CRC32C_LENGTHS] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/* Global functions, both: the verifier goes through each loop once, not anew wherever it is called. */
__noinline __u32 crc32c_product(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = (b >> 1) ^ (CRC32C_POLYNOMIAL & -(b & 1));
	}
	return product;
}

/*
 * What the checksum of `length` bytes, as it stands in the packet, changes by where the first four do by `changed`,
 * both read as little-endian words.
 */
__noinline __u32 crc32c_difference(__u32 changed, __u32 length)
{
	for (int k = 0; k < CRC32C_LENGTHS; k++)
		if (length >> k & 1)
			changed = crc32c_product(crc32c_powers[k], changed);
	return changed;
}

#endif
