"""The deployment file: read, checked, resolved. Knows nothing of hosts."""

from sglang_ops.spec.advice import deployment_warnings, warnings
from sglang_ops.spec.cache import Cache, cache_of
from sglang_ops.spec.file import DeploymentFile, check_names
from sglang_ops.spec.gateway import Gateway
from sglang_ops.spec.launcher import Evaluation, Execution, Task
from sglang_ops.spec.load import check, find_deployment_file, load, load_mapping
from sglang_ops.spec.model import Deployment, Endpoints, EnvValue, Mount
from sglang_ops.spec.overrides import REMOVED, divided, lay_over, merged
from sglang_ops.spec.problems import SpecErrors, SpecProblem
from sglang_ops.spec.rollout import Rollout

__all__ = [
    "REMOVED",
    "Cache",
    "Deployment",
    "DeploymentFile",
    "Endpoints",
    "EnvValue",
    "Evaluation",
    "Execution",
    "Gateway",
    "Mount",
    "Rollout",
    "SpecErrors",
    "SpecProblem",
    "Task",
    "cache_of",
    "check",
    "check_names",
    "deployment_warnings",
    "divided",
    "find_deployment_file",
    "lay_over",
    "load",
    "load_mapping",
    "merged",
    "warnings",
]
