# SPDX-License-Identifier: Apache-2.0
"""The project on the kernels that users run: Debian's cloud kernels, in QEMU under software emulation."""
