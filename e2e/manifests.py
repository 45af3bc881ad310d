# SPDX-License-Identifier: Apache-2.0
"""conf/install/calico-ebpf.yaml, made from conf/base by kubectl's kustomize: `python -m e2e.manifests` writes it.

kubectl is built from its Go module first, where it is missing (e2e/kubernetes.py).
"""

import subprocess
from pathlib import Path

from e2e import kubernetes

CONF = Path(__file__).parent.parent / "conf"
BASE, OVERLAYS = CONF / "base", CONF / "overlays"
INSTALL, UNINSTALL = CONF / "install" / "calico-ebpf.yaml", CONF / "install" / "uninstall.yaml"
HEADER = "# SPDX-License-Identifier: Apache-2.0\n# Made from conf/base by `make manifests`.\n"


def rendered(directory: Path) -> str:
    """The objects of a kustomization.

    Raises:
        kubernetes.BuildError: kubectl cannot be built.
        subprocess.CalledProcessError: the kustomization is wrong; what was said stands on standard error.
    """
    kubectl = str(kubernetes.command("kubectl"))
    return subprocess.run([kubectl, "kustomize", str(directory)], stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    INSTALL.write_text(HEADER + rendered(BASE))
