"""The deployment file: read, checked, resolved. Knows nothing of hosts."""

from sglang_ops.spec.load import find_deployment_file, load, load_mapping
from sglang_ops.spec.model import Deployment, DeploymentFile, Endpoints, EnvValue, Evaluation, Execution
from sglang_ops.spec.problems import SpecErrors, SpecProblem

__all__ = [
    "Deployment",
    "DeploymentFile",
    "Endpoints",
    "EnvValue",
    "Evaluation",
    "Execution",
    "SpecErrors",
    "SpecProblem",
    "find_deployment_file",
    "load",
    "load_mapping",
]
