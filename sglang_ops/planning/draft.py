"""What is decided for one service before its release can be named, with every reason why it cannot run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sglang_ops.planning import devices, nodes
from sglang_ops.planning.arguments import Judged, judge
from sglang_ops.planning.checks import check_model, check_port, check_secrets
from sglang_ops.planning.command import ModelSource, arguments, hub_cache
from sglang_ops.planning.facts import HostFacts, Model, ModelFiles, Service
from sglang_ops.planning.fit import Fit, as_mapping, fit
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.questions import repository
from sglang_ops.planning.settings import Settings
from sglang_ops.planning.wanted import Wanted
from sglang_ops.spec import Deployment, deployment_warnings


@dataclass(frozen=True)
class Draft:
    """`wanted` with its arguments and sizes settled; `fit` has the host's GPUs, `flags` hand them over.

    `asks` says that the image should list its arguments first, because nothing else tells its release.
    """

    wanted: Wanted
    source: ModelSource
    fit: Fit
    model: Model | None = None
    flags: tuple[str, ...] = ()
    asks: bool = False
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def deployment(self) -> Deployment:
        return self.wanted.deployment

    @property
    def fetch(self) -> bool:
        """Whether the model must be downloaded."""
        return self.source.repo is not None and not (self.model and self.model.cached)

    def as_service(self) -> Service:
        """How the next service sees this one."""
        record: dict[str, Any] = {"gpus": list(self.fit.gpus), "port": self.deployment.port}
        record["memory"] = as_mapping(self.fit.memory)
        record["content"] = {"share_gpus": self.deployment.share_gpus}
        return Service(name=self.wanted.name, record=record, state="active")


def draft(wanted: Wanted, now: HostFacts, facts: HostFacts, settings: Settings) -> Draft:
    """Decide one service. `now` is the host as it is, `facts` the host as this service will find it."""
    wanted, judged = _judged(wanted, facts, settings)
    deployment = wanted.deployment
    asks = not judged.exact and wanted.image.digest_ref not in facts.arguments
    doubts = [str(error) for error in judged.errors]
    # The newest list known here may lack what a newer image has: the image itself decides, before anything stops.
    unsure = asks and not settings.asked
    problems = [] if unsure else [Problem("arguments", text) for text in doubts]
    model, source, model_problems = _model_source(deployment, facts, settings)
    fitting = fit(deployment, source, _files(model, source, facts), facts, now, _release(wanted, facts))
    deployment = fitting.deployment
    flags, device_problems = devices.flags(fitting.gpus, facts) if not fitting.problems else ((), [])
    flags = (*flags, *nodes.flags(deployment, facts))
    problems += [*model_problems, *fitting.problems, *device_problems]
    problems += check_secrets(wanted.secrets, facts, deployment.env_vars) + check_model(source, model)
    problems += check_port(wanted.name, deployment.port, "deployment.port", facts, now)
    problems += nodes.check(deployment, facts, now)
    open_questions = [f"{text} The image is asked before anything stops." for text in doubts if unsure]
    warnings = (*judged.warnings, *open_questions, *_warnings(deployment, source), *fitting.warnings)
    warnings = (*warnings, *nodes.warnings(deployment, facts, settings))
    settled = replace(wanted, deployment=deployment)
    return Draft(settled, source, fitting, model, flags, asks, tuple(problems), warnings)


def _release(wanted: Wanted, facts: HostFacts) -> str | None:
    """The image's SGLang release, from its name or from itself; None where neither tells."""
    listed = facts.arguments.get(wanted.image.digest_ref) or {}
    return wanted.image.release or listed.get("sglang")


def _files(model: Model | None, source: ModelSource, facts: HostFacts) -> ModelFiles | None:
    """What is known of the model that will be served."""
    if source.directory:
        return facts.checkpoints.get(source.directory)
    return model.files if model else None


def _judged(wanted: Wanted, facts: HostFacts, settings: Settings) -> tuple[Wanted, Judged]:
    """The deployment with arguments as the image's SGLang release takes them, and what was found out on the way."""
    deployment, image = wanted.deployment, wanted.image
    judged = judge(
        arguments(deployment),
        image.release or None,
        image_list=facts.arguments.get(image.digest_ref),
        strict=settings.strict_arguments,
    )
    if deployment.command is not None:  # the user's own words: judged, and left alone
        return wanted, judged
    return replace(wanted, deployment=deployment.model_copy(update={"extra_args": judged.arguments})), judged


def _model_source(
    deployment: Deployment, facts: HostFacts, settings: Settings
) -> tuple[Model | None, ModelSource, list[Problem]]:
    """The hub if the model is cached or can be had, else the local checkpoint, decided per host."""
    repo, revision = repository(deployment)
    model = facts.model(repo, revision, hub_cache(deployment, settings)) if repo else None
    if repo and model and model.commit and not model.error:
        return model, ModelSource(repo=repo, commit=model.commit), []
    if deployment.checkpoint_path and facts.checkpoints.get(deployment.checkpoint_path) is not None:
        return None, ModelSource(directory=deployment.checkpoint_path), []
    problems = []
    if repo:
        why = (model.error if model else None) or "the hub did not say which commit it is"
        problems.append(Problem("model", f"model {repo} is not to be had on {facts.host}: {why}"))
    if deployment.checkpoint_path:
        message = f"checkpoint_path {deployment.checkpoint_path} on {facts.host} holds no model (no config.json)."
        problems.append(Problem("model", f"{message} Copy the checkpoint there, or set hf_model_handle."))
    return model, ModelSource(repo=repo), problems


def _warnings(deployment: Deployment, source: ModelSource) -> list[str]:
    warnings = list(deployment_warnings(deployment))
    if deployment.hf_model_handle and source.directory:
        warnings.append(f"{deployment.hf_model_handle} is not to be had; serving {source.directory} instead.")
    return warnings
