"""Dockerfile and compose.yaml, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from dtvla.bringup.graph import GraphOptions, selected
from dtvla.policy.backends.opset_compatibility import needs_conversion

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/opt/dtvla/"  # where the repository lies in the images
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@dataclass
class Stage:
    """One stage of the Dockerfile: what it starts from, and its instructions as (name, words)."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def words(self, name: str) -> list[str]:
        return [words for step, words in self.steps if step == name]


def _stages(text: str) -> dict[str, Stage]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, words = line.split(maxsplit=1)
        if name == "FROM":
            base, _, alias = words.split()
            stages[alias] = Stage(base)
        elif stages:  # not an ARG before the first stage
            stages[list(stages)[-1]].steps.append((name, words))
    return stages


STAGES = _stages((ROOT / "Dockerfile").read_text())


def _sources(stage: Stage) -> list[str]:
    """What a stage copies from the repository."""
    copies = [words.split() for words in stage.words("COPY")]
    return [source for words in copies if not words[0].startswith("--from=") for source in words[:-1]]


def _made_of(name: str) -> set[str]:
    """A stage with all those it starts from or copies from."""
    stage = STAGES[name]
    parents = {stage.base, *re.findall(r"--from=(\S+)", " ".join(stage.words("COPY")))} & set(STAGES)
    return {name}.union(*(_made_of(parent) for parent in parents))


def _levels(name: str) -> list[str]:
    """The levels with which a stage calls the set-up script."""
    return re.findall(r"tools/setup\.sh (\S+)", " ".join(STAGES[name].words("RUN")))


def _filled(text: str) -> str:
    """A text of compose.yaml with the defaults of its variables, as Compose fills them in."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


def test_hadolint_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_copies_exists_and_is_not_left_out_by_dockerignore(name: str) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    for source in _sources(STAGES[name]):
        assert (ROOT / source).exists(), f"COPY {source}: there is no such file in the repository"
        inside = [entry for entry in let_in if f"{source}/".startswith(f"{entry}/")]
        below = [entry for entry in let_in if entry.startswith(f"{source}/")]
        assert inside or below, f"COPY {source}: .dockerignore leaves it out"


def test_dockerignore_lets_in_only_what_is_copied() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert lines[0] == "*"
    copied = {source for stage in STAGES.values() for source in _sources(stage)}
    for entry in (line[1:] for line in lines if line.startswith("!")):
        assert any(f"{entry}/".startswith(f"{source}/") for source in copied), f"nobody copies {entry}"
    patterns = [line.removeprefix("**/") for line in lines[1:] if not line.startswith("!")]
    for made in ("__pycache__", "graph.pyc", "dtvla.egg-info"):
        assert any(fnmatch(made, pattern) for pattern in patterns)


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_takes_from_another_was_made_before(name: str) -> None:
    for source in re.findall(r"--from=(\S+)", " ".join(STAGES[name].words("COPY"))):
        assert source in list(STAGES)[: list(STAGES).index(name)]


def test_set_up_is_the_makefiles_own_script_with_a_level_it_knows() -> None:
    known = re.search(r"^case \$level in\n +([a-z |]+)\) ;;", (ROOT / "tools/setup.sh").read_text(), re.M)
    assert known is not None
    called = {name: _levels(name) for name in STAGES if _levels(name)}
    assert called == {"build": ["runtime"], "gpu-build": ["gpu"], "export-build": ["dev", "gpu"]}
    assert {level for levels in called.values() for level in levels} <= set(known[1].split(" | "))


@pytest.mark.parametrize("name", ["runtime", "gpu"])
def test_the_robots_images_hold_neither_torch_nor_the_training_code(name: str) -> None:
    for part in _made_of(name):
        assert "dev" not in _levels(part)
        assert not {"training", "model_export"} & set(_sources(STAGES[part]))
        assert "torch" not in " ".join(STAGES[part].words("RUN"))
        assert "requirements/dev.txt" not in " ".join(STAGES[part].words("RUN"))


def test_no_compiler_stays_in_the_robots_images() -> None:
    for name in ("runtime", "gpu", STAGES["gpu"].base):
        assert not {"g++", "gcc", "cmake"} & set(" ".join(STAGES[name].words("RUN")).split())


def test_pip_installs_only_pinned_versions() -> None:
    text = (ROOT / "Dockerfile").read_text()
    version = re.search(r"^ARG TENSORRT=(\S+)$", text, re.M)
    assert version is not None
    assert version[1].startswith("10."), "ONNX Runtime's TensorRT provider links libnvinfer.so.10"
    steps = [words for stage in STAGES.values() for words in stage.words("RUN") if "pip install" in words]
    assert steps
    for words in steps:
        assert re.findall(r'"([\w-]+==\S+)"', words) == ["tensorrt-cu13==${TENSORRT}"]
        assert "-c requirements/lock.txt" in words


def test_onnx_runtime_for_the_gpu_knows_the_graphs_operators() -> None:
    lines = (ROOT / "requirements/gpu.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    (runtime,) = [pin for pin in pins if pin.name == "onnxruntime-gpu"]
    (version,) = runtime.specifier
    assert not needs_conversion(version.version)


def test_a_plain_build_makes_the_image_without_a_gpu() -> None:
    assert list(STAGES)[-1] == "runtime"


def test_the_export_image_starts_a_module_that_it_holds() -> None:
    (words,) = STAGES["export"].words("CMD")
    module = Path(yaml.safe_load(words)[0].replace(".", "/")).with_suffix(".py")
    assert (ROOT / module).is_file()
    assert {"training", module.parts[0]} <= set(_sources(STAGES["export"]))


@pytest.mark.parametrize("name", ["runtime", "gpu"])
def test_the_robots_images_start_with_a_command_that_exists(name: str) -> None:
    assert STAGES[name].words("ENTRYPOINT") == ['["/opt/dtvla/.venv/bin/dtvla"]']
    (words,) = STAGES[name].words("CMD")
    _check_command(yaml.safe_load(words))


def _check_command(words: list[str]) -> None:
    """Whether `dtvla` with these words is a command it has, with options that the command has."""
    line = [sys.executable, "-m", "dtvla.cli", words[0], "--help"]
    env = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"--[a-z0-9-]+", done.stdout))
    asked = {word for word in words if word.startswith("--")}
    assert asked <= known, f"dtvla {words[0]} has no {sorted(asked - known)}"


def test_the_services_of_compose_are_built_from_stages_that_exist() -> None:
    images = {}
    for name, service in SERVICES.items():
        target = service["build"]["target"]
        assert target in STAGES, f"{name}: the Dockerfile has no stage {target}"
        assert images.setdefault(service["image"], target) == target
    assert SERVICES["policy-gpu"]["build"]["target"] == "gpu"


def test_the_policys_services_call_dtvla_with_options_that_exist() -> None:
    for service in (SERVICES["policy"], SERVICES["policy-gpu"]):
        assert "entrypoint" not in service  # the image's own: dtvla
        _check_command([_filled(word) for word in service["command"]])


def test_the_simulated_robot_is_the_graphs_bridge_alone_started_by_dtvla() -> None:
    """No script, and no Python inside YAML: what brings it alive is what brings every graph alive."""
    service = SERVICES["sim"]
    assert "entrypoint" not in service  # the image's own: dtvla
    command = [_filled(word) for word in service["command"]]
    _check_command(command)
    options = GraphOptions(bundle=Path(), only=command[command.index("--only") + 1])
    assert [node.option for node in selected(options)] == ["simulator"]
    assert int(command[command.index("--task") + 1]) == 0


def test_all_services_meet_in_one_domain_and_one_network() -> None:
    for name, service in SERVICES.items():
        assert service["environment"]["ROS_DOMAIN_ID"] == "${ROS_DOMAIN_ID:-42}", name
        # With LOCALHOST a container would hear only itself.
        assert service["environment"]["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET", name
        assert service["networks"] == ["graph"], name
    for name in ("policy", "sim"):
        command = SERVICES[name]["command"]
        assert command[command.index("--domain") + 1] == "${ROS_DOMAIN_ID:-42}", name
        assert "--join" in command, name


def test_only_what_needs_special_hardware_waits_for_a_profile() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles == {"policy": None, "policy-gpu": ["gpu"], "sim": None, "rviz": ["rviz"]}


def test_the_bundle_is_mounted_read_only_and_the_shipped_one_by_default() -> None:
    command = SERVICES["policy"]["command"]
    volumes = dict(_filled(volume).split(":", 1) for volume in SERVICES["policy"]["volumes"])
    folder = command[command.index("--bundle") + 1]
    (source,) = (source for source, target in volumes.items() if target == f"{folder}:ro")
    assert (ROOT / source / "policy.json").is_file()
    assert volumes["./runs"] == f"{PREFIX}runs"


def test_the_image_with_rviz_holds_what_its_launch_file_reads() -> None:
    (words,) = STAGES["rviz"].words("CMD")
    file = Path(yaml.safe_load(words)[-1])
    assert (ROOT / file).is_file()
    copied = _sources(STAGES["rviz"])
    assert file.parts[0] in copied
    # The launch file finds the other two through dtvla.resources.
    assert {"urdf", "ros2_ws/src/dtvla"} <= set(copied)
    assert STAGES["rviz"].words("ENV") == [f"PYTHONPATH={PREFIX}ros2_ws/src/dtvla"]


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_the_first_error(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "\nset -euo pipefail\n" in path.read_text()
    assert os.access(path, os.X_OK)


def test_compose_itself_reads_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("needs Docker with Compose: https://docs.docker.com/engine/install")
    line = [docker, "compose", "--profile", "*", "config", "--quiet"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
