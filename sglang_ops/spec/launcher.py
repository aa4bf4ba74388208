"""The sections that belong to the NeMo Evaluator Launcher rather than to the server.

Every key of its schema (package nemo-evaluator-launcher 0.2.6: default.yaml, execution/*.yaml, config_models.py) is
known here, so that a file written for it works as it is. What it says to other executors is accepted and ignored;
`sglang_ops.spec.advice` says so for each key that a file sets.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sglang_ops.spec.section import NO_EFFECT, Section, no_effect, subsection
from sglang_ops.spec.values import EnvVars, Mistake, Mounts

FreeMapping = Annotated[dict[str, Any], BeforeValidator(lambda raw: {} if raw is None else raw)]
NVIDIA_HARNESSES = ("simple_evals", "lm-evaluation-harness")
_HOSTS = "The inventory says which hosts there are."
_SLURM = "Slurm: "
_LEPTON = "Lepton: "


class ExecutionMounts(Section):
    """Further mounts, host path: container path."""

    deployment: Mounts = Field((), description="Mounts of the server's container, beside deployment.mounts.")
    evaluation: Mounts = Field((), description="Mounts of the evaluation's container.")
    auxiliary: Any = no_effect("Mounts of auxiliary deployments.")
    mount_home: Any = no_effect("Slurm: whether the home directory is mounted.")


class ExecutionEnvVars(Section):
    """The launcher's older place for environment variables."""

    deployment: EnvVars = Field(default_factory=dict, description="Environment of the server, below its own.")
    evaluation: EnvVars = Field(default_factory=dict, description="Environment of the evaluation.")
    export: Any = no_effect("Environment of the launcher's exporters.")


class Execution(Section):
    """The launcher's execution section. What belongs to other executors is accepted and has no effect here."""

    type: Any = Field(
        None,
        description="`local` evaluates from this machine instead of on the hosts. No other executor has an effect.",
        json_schema_extra={NO_EFFECT: _HOSTS},
    )
    output_dir: str | None = Field(None, description="Where the evaluation's results are brought.")
    mounts: ExecutionMounts = subsection(ExecutionMounts, "Further mounts of the containers.")
    env_vars: ExecutionEnvVars = subsection(ExecutionEnvVars, "Environment per container.")
    extra_docker_args: Any = no_effect(
        "Further arguments of `docker run`.", "Set sglang_server_container_args in the inventory."
    )
    mode: Any = no_effect("Order of the launcher's tasks.")
    endpoint_readiness_timeout: Any = no_effect(
        "Seconds that the launcher waits for the server.", "Set sglang_server_start_timeout in the inventory."
    )
    auto_export: Any = no_effect("Where the launcher exports results by itself.")
    hostname: Any = no_effect(_SLURM + "the login host.", _HOSTS)
    username: Any = no_effect(_SLURM + "the user on the login host.", "Set ansible_user in the inventory.")
    account: Any = no_effect(_SLURM + "the account that pays.")
    partition: Any = no_effect(_SLURM + "the partition.", _HOSTS)
    cpu_partition: Any = no_effect(_SLURM + "the partition of exports.")
    num_nodes: Any = no_effect(_SLURM + "number of nodes.", _HOSTS)
    num_instances: Any = no_effect(_SLURM + "number of servers.", "Every host serves one.")
    ntasks_per_node: Any = no_effect(_SLURM + "tasks per node.")
    gres: Any = no_effect(_SLURM + "resources per node.", "GPUs come from the parallel sizes.")
    gpus_per_node: Any = no_effect(_SLURM + "GPUs per node.", "GPUs come from the parallel sizes.")
    walltime: Any = no_effect(_SLURM + "time limit of a job.")
    max_walltime: Any = no_effect(_SLURM + "time limit of all jobs together.")
    subproject: Any = no_effect(_SLURM + "name of the subproject.")
    sbatch_comment: Any = no_effect(_SLURM + "comment of the job.")
    sbatch_extra_flags: Any = no_effect(_SLURM + "further flags of sbatch.")
    deployment: Any = no_effect(_SLURM + "number of the deployment's tasks.")
    proxy: Any = no_effect(_SLURM + "proxy in front of several servers.")
    evaluation_gpu_visible: Any = no_effect(_SLURM + "whether evaluations see GPUs.")
    env_var_names: Any = no_effect(_LEPTON + "variables of the evaluation.")
    evaluation_tasks: Any = no_effect(_LEPTON + "resources of evaluations.")
    lepton_platform: Any = no_effect(_LEPTON + "settings of the platform.")

    @model_validator(mode="before")
    @classmethod
    def _word(cls, data: Any) -> Any:
        return {"type": data} if isinstance(data, str) else data

    @property
    def on_controller(self) -> bool:
        """Whether the harness runs on the machine at which the operator sits."""
        return bool(self.type == "local")


class Task(Section):
    """One evaluation task."""

    name: str = Field(description="The task, `ifeval` or with its harness `lm-evaluation-harness.ifeval`.")
    container: str | None = Field(None, description="Image instead of the task's own.")
    endpoint_type: str | None = Field(None, description="chat or completions; found by itself when not given.")
    env_vars: EnvVars = Field(default_factory=dict, description="Environment of this task; wins over the section's.")
    nemo_evaluator_config: FreeMapping = Field(
        default_factory=dict, description="Free settings of the evaluator for this task; wins over the section's."
    )
    dataset_dir: str | None = Field(
        None, description="Directory with the data set: relative to this file, or an absolute path on the hosts."
    )
    dataset_mount_path: Any = no_effect("Where the container sees dataset_dir.", "Tasks find their data by themselves.")
    pre_cmd: str = Field("", description="Shell commands in the container before the evaluator.")
    post_cmd: str = Field("", description="Shell commands in the container after the evaluator, also when it failed.")

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise Mistake("must name a task.", fix="Write one like 'ifeval'.")
        return value


class Evaluation(Section):
    """What is evaluated once the server serves."""

    tasks: Annotated[tuple[Task, ...], BeforeValidator(lambda raw: () if raw is None else raw)] = Field(
        (), description="The tasks, in their order."
    )
    nemo_evaluator_config: FreeMapping = Field(
        default_factory=dict, description="Free settings of the evaluator for all tasks (config.params, target, …)."
    )
    harness: Literal["lm-evaluation-harness", "nvidia"] = Field(
        "lm-evaluation-harness",
        description="Who runs a task that several know: `nvidia` prefers NVIDIA's containers of the launcher.",
    )
    harness_image: str | None = Field(
        None, description="Image with Python and lm_eval, in which evaluations run. Default: evaluation_harness_image."
    )
    nvidia_images: Annotated[dict[str, str], BeforeValidator(lambda raw: {} if raw is None else raw)] = Field(
        default_factory=dict,
        description="NVIDIA's containers by harness (simple_evals, lm-evaluation-harness), instead of the launcher's; "
        "one that stands here is preferred.",
    )
    env_vars: EnvVars = Field(default_factory=dict, description="Environment of all tasks.")
    pre_cmd: str = Field("", description="Shell commands in every task's container before the evaluator.")
    post_cmd: str = Field("", description="Shell commands in every task's container after the evaluator.")

    @field_validator("nvidia_images")
    @classmethod
    def _of_nvidia(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = next((name for name in value if name not in NVIDIA_HARNESSES), None)
        if unknown is not None:
            raise Mistake(
                "is no harness of NVIDIA's that is run here.", unknown, fix=f"Known: {', '.join(NVIDIA_HARNESSES)}."
            )
        return value


class ApiEndpoint(Section):
    """The launcher's description of a server that runs already."""

    url: Any = no_effect("Address of a server that runs already.", "Deployed services are found by themselves.")
    model_id: Any = no_effect("Model of a server that runs already.", "It is served_model_name.")
    api_key_name: Any = no_effect("Variable with the key of a server that runs already.")
    type: Any = no_effect("Kind of a server that runs already.")
    adapter_config: Any = no_effect("The launcher's interceptors.", "Set it in evaluation.nemo_evaluator_config.")


class Target(Section):
    """What the launcher evaluates when it deploys nothing."""

    api_endpoint: ApiEndpoint = subsection(ApiEndpoint, "A server that runs already.")


class Export(Section):
    """The launcher's exporters."""

    local: Any = no_effect("Export to files.")
    mlflow: Any = no_effect("Export to MLflow.")
    wandb: Any = no_effect("Export to Weights & Biases.")
    gsheets: Any = no_effect("Export to Google Sheets.")
    jet: Any = no_effect("Export to JET.")
    env_vars: Any = no_effect("Environment of the exporters.")
