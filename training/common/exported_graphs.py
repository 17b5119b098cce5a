"""The runtime's graphs of a checkpoint, and other weights in them.

ONNX Runtime decides a third faster on a CPU than torch does, and it is what runs on the robot. An export
takes seconds, as torch is traced; the graphs of other weights differ in their numbers alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
from safetensors.torch import load_file

from dtvla.policy.bundle.loading import GRAPHS
from training.common.run_checkpoints import TrainingError, writing

_OF_THE_MODEL = "model."  # what the exporter puts in front of a parameter's name


def export(checkpoint: Path, bundle: Path, *options: str) -> None:
    """Makes a bundle of a checkpoint, in a process of its own: tracing leaves much behind in memory.

    Raises:
        TrainingError: the export failed; the message has its reason.
    """
    command = [sys.executable, "-m", "model_export", str(checkpoint), "--out", str(bundle), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join((done.stderr or done.stdout).split())  # it was wrapped for a terminal
        raise TrainingError(f"{checkpoint} cannot be exported: {reason[-500:]}")


class Graphs:
    """Folders with the graphs of one model under whatever weights it has, until `close`.

    Args:
        checkpoint: a folder; exported when its graphs are first asked for.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._scratch = tempfile.TemporaryDirectory(prefix="dtvla_graphs_")
        self._fitted: Path | None = None

    def exported(self) -> Path:
        """The checkpoint's own graphs.

        Raises:
            TrainingError: they cannot be made.
        """
        folder = Path(self._scratch.name) / "checkpoint"
        if not folder.is_dir():
            export(self._checkpoint, folder, "--keep-names")
        return folder

    def fitted(self, weights: Path) -> Path:
        """The graphs with the weights of a safetensors file; the folder that was given before is gone then.

        Raises:
            TrainingError: they cannot be made or written, or the weights are not those of this model.
        """
        folder = Path(self._scratch.name) / weights.stem
        put_weights(self.exported(), weights, folder)
        if self._fitted not in (None, folder):
            shutil.rmtree(self._fitted, ignore_errors=True)
        self._fitted = folder
        return folder

    def close(self) -> None:
        """Removes all of them."""
        self._scratch.cleanup()


def put_weights(graphs: Path, weights: Path, out: Path) -> None:
    """Copies graphs that were exported with `--keep-names` and puts other weights into the copies.

    Raises:
        TrainingError: the weights are not those of this model, or the disk is full.
    """
    rest = {_OF_THE_MODEL + name: tensor for name, tensor in load_file(weights).items()}
    unused = set(rest)
    with writing(f"The graphs with the weights of {weights}"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for name in GRAPHS:
            graph = onnx.load(str(graphs / name))
            for held in graph.graph.initializer:
                if held.name not in rest or list(rest[held.name].shape) != list(held.dims):
                    raise TrainingError(f"{weights} has no weight for {held.name} of {name}.")
                array = rest[held.name].float().numpy()
                held.CopyFrom(onnx.numpy_helper.from_array(array, held.name))
                unused.discard(held.name)
            beside = f"{name}.data"  # where the exporter puts the weights of a large graph
            outside = (graphs / beside).is_file()
            onnx.save(graph, str(out / name), save_as_external_data=outside, location=beside)
    if unused:
        raise TrainingError(f"{weights}: no graph of {graphs} has a place for {min(unused)}.")
