/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Compiled for its BTF alone, from which bpf/abi.py is generated: what nothing refers to is not in BTF. */
#include "config.h"
#include "maps.h"
#include "table.h"

struct {
	enum abi_version abi_version;
	enum frontend_flag frontend_flag;
	enum backend_flag backend_flag;
	enum host_port host_port;
	enum maglev maglev;
	enum remote_flag remote_flag;
	enum node_flag node_flag;
	enum device_flag device_flag;
	enum way_kind way_kind;
	enum flow_state flow_state;
	enum flow_flag flow_flag;
	enum socket_side socket_side;
	enum drop_reason drop_reason;
	enum counter counter;
	enum connect_time connect_time;
	enum state_index state_index;
	enum probe probe;
} abi_types;
