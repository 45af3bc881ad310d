/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The deny list: from where nothing comes in from outside, whatever it is for. */
#ifndef CALICO_EBPF_DENY_H
#define CALICO_EBPF_DENY_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/*
 * An empty list costs a look-up that returns at once. Not inlined: with its key on their stacks the callers' states are
 * all told apart, and the verifier takes twice as long over everything that comes after.
 */
static __noinline bool is_denied(const struct address *source)
{
	const struct remote_key key = {.prefix_bits = 128, .address = *source};

	return bpf_map_lookup_elem(&denied, &key);
}

#endif
