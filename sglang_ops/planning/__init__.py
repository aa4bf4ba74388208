"""What must happen on a host: a pure function of the deployment file and what is there.

Imports neither Ansible nor the command line, so that the dry run, the deployment and the tests share it.
"""

from sglang_ops.planning.facts import HostFacts
from sglang_ops.planning.gateway import WantedGateway, Worker, worker_url
from sglang_ops.planning.plan import HostPlan, plan
from sglang_ops.planning.questions import questions
from sglang_ops.planning.service import ServicePlan
from sglang_ops.planning.settings import ResolvedImage, Secrets, Settings
from sglang_ops.planning.steps import Step
from sglang_ops.planning.wanted import Wanted

__all__ = [
    "HostFacts",
    "HostPlan",
    "ResolvedImage",
    "Secrets",
    "ServicePlan",
    "Settings",
    "Step",
    "Wanted",
    "WantedGateway",
    "Worker",
    "plan",
    "questions",
    "worker_url",
]
