/* SPDX-License-Identifier: Apache-2.0 */
/* Prints each struct of bpf/abi.h with the values of test_abi.py as "name hex": what the compiler makes of it. */
#include <stdio.h>

#include "abi.h"

/* htonl() is no constant expression. The programs, and this, are little-endian. */
#define BE16(value) __builtin_bswap16(value)
#define BE32(value) __builtin_bswap32(value)

#define ADDRESS(last)                                                                                                  \
	{                                                                                                              \
		.word_be = { BE32(0x20010db8), BE32(0x01020304), BE32(0x05060708), BE32(0x090a0b00 | (last)) }         \
	}
#define TUPLE(n)                                                                                                       \
	{                                                                                                              \
		.saddr = ADDRESS(0x10 + (n)), .daddr = ADDRESS(0x20 + (n)), .sport_be = BE16(0x3130 + (n)),            \
		.dport_be = BE16(0x4140 + (n)), .protocol = 0x50 + (n)                                                 \
	}
#define PRINT(type) print(#type, &type, sizeof(type))

static const struct tuple tuple = TUPLE(1);
static const struct frontend_key frontend_key = {.address = ADDRESS(1), .port_be = BE16(0x0203), .protocol = 0x04};
static const struct frontend frontend = {
	.service_id = 0x01020304,
	.slot_count = 0x05060708,
	.local_count = 0x090a0b0c,
	.cluster_start = 0x0d0e0f10,
	.flags = 0x11121314,
	.affinity_s = 0x15161718,
};
static const struct source_key source_key = {
	.prefix_bits = 0x01020304,
	.frontend = {.address = ADDRESS(1), .port_be = BE16(0x0203), .protocol = 0x04},
	.address = ADDRESS(2),
};
static const struct source source = {.flags = 0x01020304};
static const struct slot_key slot_key = {.service_id = 0x01020304, .slot = 0x05060708};
static const struct slot slot = {.backend_id = 0x01020304};
static const struct maglev_key maglev_key = {.service_id = 0x01020304, .row = 0x05060708};
static const struct maglev_row maglev_row = {
	.backend_ids = {0x01020300, 0x01020301, 0x01020302, 0x01020303, 0x01020304, 0x01020305, 0x01020306, 0x01020307,
			0x01020308, 0x01020309, 0x0102030a, 0x0102030b, 0x0102030c, 0x0102030d, 0x0102030e, 0x0102030f,
			0x01020310, 0x01020311, 0x01020312, 0x01020313, 0x01020314, 0x01020315, 0x01020316, 0x01020317,
			0x01020318, 0x01020319, 0x0102031a, 0x0102031b, 0x0102031c, 0x0102031d, 0x0102031e, 0x0102031f},
};
static const struct backend_key backend_key = {.backend_id = 0x01020304};
static const struct backend backend = {
	.address = ADDRESS(1),
	.port_be = BE16(0x0203),
	.protocol = 0x04,
	.flags = 0x05,
};
static const struct affinity_key affinity_key = {.client = ADDRESS(1), .service_id = 0x02030405};
static const struct affinity affinity = {.backend_id = 0x01020304, .seen_ns = 0x1112131415161718};
static const struct fragment_key fragment_key = {
	.saddr = ADDRESS(1),
	.daddr = ADDRESS(2),
	.identification = 0x02030405,
	.protocol = 0x04,
};
static const struct fragment fragment = {
	.seen_ns = 0x1112131415161718,
	.sport_be = BE16(0x0102),
	.dport_be = BE16(0x0304),
	.protocol = 0x05,
	.is_echo = 0x06,
};
static const struct pod_key pod_key = {.address = ADDRESS(1)};
static const struct pod pod = {
	.ifindex = 0x01020304,
	.flags = 0x05060708,
	.pod_mac = {0x11, 0x12, 0x13, 0x14, 0x15, 0x16},
	.host_mac = {0x21, 0x22, 0x23, 0x24, 0x25, 0x26},
	.container_hash = 0x3132333435363738,
};
static const struct remote_key remote_key = {.prefix_bits = 0x01020304, .address = ADDRESS(5)};
static const struct remote remote = {
	.next_hop = ADDRESS(1),
	.node = ADDRESS(2),
	.ifindex = 0x02030405,
	.overlay_ifindex = 0x06070809,
	.flags = 0x0a0b0c0d,
};
static const struct node_key node_key = {.address = ADDRESS(1)};
static const struct node node = {.flags = 0x01020304};
static const struct peer_key peer_key = {.mac = {0x11, 0x12, 0x13, 0x14, 0x15, 0x16}};
static const struct peer peer = {.address = ADDRESS(1)};
static const struct device_key device_key = {.ifindex = 0x01020304};
static const struct device device = {
	.v4 = ADDRESS(1),
	.v6 = ADDRESS(2),
	.mtu = 0x02030405,
	.flags = 0x06070809,
	.mac = {0x21, 0x22, 0x23, 0x24, 0x25, 0x26},
};
static const struct unmasqueraded unmasqueraded = {.flags = 0x01020304};
static const struct denied denied = {.flags = 0x01020304};
static const struct way way = {.ifindex = 0x01020304, .kind = 0x05, .end = {0x11, 0x12, 0x13, 0x14, 0x15, 0x16}};
static const struct flow flow = {
	.twin = TUPLE(2),
	.seen_ns = 0x6162636465666768,
	.expires_ns = 0x5152535455565758,
	.created_ns = 0x7172737475767778,
	.backend_id = 0x81828384,
	.state = 0x91,
	.flags = 0xa1,
	.way = {.ifindex = 0x01020304, .kind = 0x05, .end = {0x11, 0x12, 0x13, 0x14, 0x15, 0x16}},
};
static const struct socket_key socket_key = {
	.cookie = 0x0102030405060708,
	.address = ADDRESS(9),
	.port_be = BE16(0x0a0b),
	.protocol = 0x0c,
	.side = 0x0d,
};
static const struct socket_peer socket_peer = {
	.address = ADDRESS(1),
	.port_be = BE16(0x0203),
	.backend_id = 0x04050607,
	.source = ADDRESS(8),
	.seen_ns = 0x1112131415161718,
};
static const struct drop_key drop_key = {.reason = 0x01020304, .ifindex = 0x05060708};
static const struct drop_count drop_count = {.packets = 0x0102030405060708, .octets = 0x1112131415161718};
static const struct config config = {
	.host_netns_cookie = 0x0102030405060708,
	.tcp_new_ns = 0x1112131415161718,
	.tcp_established_ns = 0x2122232425262728,
	.tcp_closing_ns = 0x3132333435363738,
	.tcp_closed_ns = 0x4142434445464748,
	.udp_new_ns = 0x5152535455565758,
	.udp_established_ns = 0x6162636465666768,
	.connect_time = 0x71727374,
	.mark = 0x81828384,
	.masquerade_port_min = 0x91929394,
	.masquerade_port_count = 0xa1a2a3a4,
	.coarse_clock = 0xb1b2b3b4,
	.overlay_port = 0xc1c2c3c4,
	.closes_udp = 0xd1d2d3d4,
	.maglev_size = 0xe1e2e3e4,
};

static void print(const char *name, const void *value, size_t size)
{
	const unsigned char *bytes = value;

	printf("%s ", name);
	for (size_t i = 0; i < size; i++)
		printf("%02x", bytes[i]);
	printf("\n");
}

int main(void)
{
	PRINT(tuple);
	PRINT(frontend_key);
	PRINT(frontend);
	PRINT(source_key);
	PRINT(source);
	PRINT(slot_key);
	PRINT(slot);
	PRINT(maglev_key);
	PRINT(maglev_row);
	PRINT(backend_key);
	PRINT(backend);
	PRINT(fragment_key);
	PRINT(fragment);
	PRINT(affinity_key);
	PRINT(affinity);
	PRINT(pod_key);
	PRINT(pod);
	PRINT(remote_key);
	PRINT(remote);
	PRINT(node_key);
	PRINT(node);
	PRINT(peer_key);
	PRINT(peer);
	PRINT(device_key);
	PRINT(device);
	PRINT(unmasqueraded);
	PRINT(denied);
	PRINT(way);
	PRINT(flow);
	PRINT(socket_key);
	PRINT(socket_peer);
	PRINT(drop_key);
	PRINT(drop_count);
	PRINT(config);
	return 0;
}
