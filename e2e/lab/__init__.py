# SPDX-License-Identifier: Apache-2.0
"""The netns lab: nodes and an outside client made of namespaces, on one machine, with nothing left of it afterwards.

    addresses   the address plan
    space       a process that holds namespaces, and how to run things in them
    network     the switch, and the cable from it to each space
    runtime     what a container runtime does: calls the CNI executable, and gives pods something to run
    node        a space that is a Kubernetes node, with our daemons
    source      where Services come from: a directory of manifests, or an API server
    cluster     all of it together, up and down
    real        a Kubernetes cluster in a lab: machine (containerd, kubelet), controlplane, images, cgroups
    server, ask, load    run inside pods and nodes: what answers, and what asks
    vpn         joins two TUN devices

Nothing of this is installed; it needs root. `python -m e2e.lab --help` is it by hand.
"""
