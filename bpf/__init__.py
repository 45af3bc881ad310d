# SPDX-License-Identifier: Apache-2.0
"""The BPF programs, and all that Python needs to load, attach, read and write; the base of `cni` and `controller`."""
