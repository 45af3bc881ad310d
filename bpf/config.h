/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Load-time constants: the loader patches them into .rodata of the object, then loads it. */
#ifndef CALICO_EBPF_CONFIG_H
#define CALICO_EBPF_CONFIG_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define SECOND_NS 1000000000ULL

const volatile struct config config = {
	.tcp_new_ns = 60 * SECOND_NS,
	.tcp_established_ns = 21600 * SECOND_NS,
	.tcp_closing_ns = 120 * SECOND_NS,
	.tcp_closed_ns = 30 * SECOND_NS,
	.udp_new_ns = 30 * SECOND_NS,
	.udp_established_ns = 120 * SECOND_NS,
	.connect_time = CONNECT_TIME_HOST,
	.mark = 0xce1f0000,
	.masquerade_port_min = 10000,
	.masquerade_port_count = 20000,
	.overlay_port = 4789,
	.closes_udp = 1,
	.maglev_size = 4093,
};

#endif
