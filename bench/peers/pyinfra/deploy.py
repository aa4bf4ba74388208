"""The same work as the Ansible role beside this, operation by operation."""

import json

from pyinfra import config, host
from pyinfra.api.exceptions import OperationError
from pyinfra.facts.files import File
from pyinfra.facts.server import Command, LinuxDistribution
from pyinfra.operations import apt, docker, files, server, systemd

config.SUDO = True

data = host.data
service = f"{data.sglang_service}.service"
cache = f"{data.sglang_hf_home}/hub/models--{data.sglang_model.replace('/', '--')}"
GPUS = "nvidia-smi --query-gpu=index,name,memory.total,memory.used --format=csv,noheader,nounits"

# The host.
if host.get_fact(LinuxDistribution)["release_meta"].get("ID") not in ("debian", "ubuntu"):
    raise OperationError("Only Debian and Ubuntu are supported.")
if int(host.get_fact(Command, "df --output=avail --block-size=1 / | tail -n 1")) < data.sglang_min_free_bytes:
    raise OperationError("The root file system is too full.")
if not any(line.startswith(f"{data.sglang_gpu},") for line in host.get_fact(Command, GPUS).splitlines()):
    raise OperationError(f"There is no GPU {data.sglang_gpu}.")
if not host.get_fact(File, "/etc/cdi/nvidia.yaml"):
    raise OperationError("/etc/cdi/nvidia.yaml is missing.")

# Docker.
apt.packages(
    name="Install docker",
    packages=["docker.io", "docker-cli", "ca-certificates"],
    no_recommends=True,
    update=True,
    cache_time=86400,
)
configuration = files.template(
    name="Configure docker",
    src="templates/daemon.json.j2",
    dest="/etc/docker/daemon.json",
    registries=json.dumps(data.sglang_insecure_registries),
)
systemd.service(name="Start docker", service="docker.service", running=True, enabled=True)
systemd.service(
    name="Restart docker if it was reconfigured",
    service="docker.service",
    restarted=True,
    _if=configuration.did_change,
)

# Image and model.
docker.image(name="Pull the image", image=data.sglang_image)
files.directory(name="Create the Hugging Face cache", path=data.sglang_hf_home, mode="755", user="root", group="root")
if not host.get_fact(File, f"{cache}/refs/main"):
    download = (
        f"docker run --rm --network=host --volume={data.sglang_hf_home}:{data.sglang_hf_home}"
        f" --env=HF_HOME={data.sglang_hf_home} --env=HF_ENDPOINT={data.sglang_hf_endpoint}"
        f" --entrypoint=hf {data.sglang_image} download {data.sglang_model}"
    )
    server.shell(name="Download the model", commands=[download])

# The server.
unit = files.template(
    name="Write the unit",
    src="templates/sglang.service.j2",
    dest=f"/etc/systemd/system/{service}",
    mode="644",
)
systemd.service(
    name="Restart the server if its unit changed",
    service=service,
    restarted=True,
    daemon_reload=True,
    _if=unit.did_change,
)
systemd.service(name="Start the server", service=service, running=True, enabled=True)

# Its health.
files.put(name="Install the health check", src="files/sglang-health", dest="/usr/local/bin/sglang-health", mode="755")
server.shell(name="Check that the unit is active", commands=[f"systemctl is-active {service}"])
for question in ("port", "ready", "models", "chat"):
    server.shell(
        name=f"Ask the server: {question}",
        commands=[f"sglang-health {question} {data.sglang_port} {data.sglang_served_model_name}"],
        _retries=data.sglang_start_timeout if question in ("port", "ready") else 0,
        _retry_delay=1,
    )
