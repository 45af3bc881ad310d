/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The deny list: from where nothing comes in from outside, whatever it is for. */
#ifndef CALICO_EBPF_DENY_H
#define CALICO_EBPF_DENY_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* An empty list costs a call that returns at once. */
static __always_inline bool is_denied(const struct address *source)
{
	const struct remote_key key = {.prefix_bits = 128, .address = *source};

	return bpf_map_lookup_elem(&denied, &key);
}

#endif
