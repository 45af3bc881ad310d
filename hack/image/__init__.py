# SPDX-License-Identifier: Apache-2.0
"""Makes the container image, and in it the bundle that nodes run, without a container engine.

    apt        Debian's packages of any suite and architecture, downloaded and unpacked
    rootfs     the image's root file system, of such packages
    runtime    a Python with its C library, bpftool and what we import: the part of the bundle that is not ours
    bundle     the bundle: the runtime with our programs, by a digest of it all
    archive    layers and docker archives, the same bytes from the same files
    place      where all of it stands on a node, and in the image alike

`python -m hack.image` puts them together. README.md beside this file says what is in the image, and why.
"""
