"""Cheap rendering: no shadows, multi-sampling or reflections (three to four times faster on a CPU)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def fast_models(fast: bool) -> Iterator[None]:
    """Every simulation loaded inside skips shadows and multi-sampling; with `fast` False nothing changes.

    The sizes of the frame buffers are read when a model's renderer is made, right after loading, so they
    cannot be set later.
    """
    if not fast:
        yield
        return
    import robosuite.utils.binding_utils as binding

    method = binding.MjSim.__dict__["from_xml_string"]

    def from_xml_string(cls: type, xml: str) -> Any:
        sim = method.__func__(cls, xml)
        model = sim.model._model
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.light_castshadow[:] = 0
        return sim

    binding.MjSim.from_xml_string = classmethod(from_xml_string)
    try:
        yield
    finally:
        binding.MjSim.from_xml_string = method


def drop_reflections(sim: Any) -> None:
    """Switches reflections and shadows off in a simulation's renderer, which must exist by now."""
    import mujoco

    flags = sim._render_context_offscreen.scn.flags
    for flag in (mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SHADOW):
        flags[flag] = 0
