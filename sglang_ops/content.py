"""Where the playbooks, roles and plugins are.

A wheel carries them beside the package, in ``sglang_ops/_content``; in a checkout they lie one level above the
package. The directory is found next to the package that was really imported, so an editable installation
never picks up the stale copy that a build tool may have left in site-packages.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sglang_ops.errors import OpsError


@cache
def root() -> Path:
    """The directory that holds ``playbooks/``, ``roles/``, ``plugins/`` and ``ansible.cfg``."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_content", package.parent):
        if (candidate / "ansible.cfg").is_file():
            return candidate
    raise OpsError(
        f"The playbooks of sglang-ops are neither in {package / '_content'} nor in {package.parent}.",
        fix="Install sglang-ops again: the installation is incomplete.",
    )


def playbook(verb: str) -> Path:
    """The playbook of a verb, for example ``deploy``."""
    return root() / "playbooks" / f"{verb}.yml"
