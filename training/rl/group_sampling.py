"""Groups of rollouts: which first states are tried, and which groups can teach something."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dtvla.sim.env import list_tasks
from training.common import parallel
from training.common.run_checkpoints import TrainingError, writing
from training.rl import trajectory
from training.rl.settings import RolloutSettings
from training.rl.trajectory import RolloutJob, Trajectory
from training.rl.workers import Lost, Rollouts


class InitialStates:
    """The endless sequence of first states: every (task, seed) once per round, in a new order each.

    Args:
        settings: of the rollouts.
        seed: of the orders.
    """

    def __init__(self, settings: RolloutSettings, seed: int) -> None:
        try:
            known = [info.index for info in list_tasks(settings.suite)]
        except ValueError as error:
            raise TrainingError(f"rollout.suite: {error}") from None
        unknown = sorted(set(settings.tasks) - set(known))
        if unknown:
            raise TrainingError(f"rollout.tasks: '{settings.suite}' has no task {unknown[0]}.")
        seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
        self._all = [(task, seed) for task in settings.tasks or known for seed in seeds]
        self._seed = seed

    def group(self, draw: int, size: int) -> list[RolloutJob]:
        """The rollouts of the prompt with this number."""
        turn, place = divmod(draw, len(self._all))
        order = np.random.default_rng((self._seed, turn)).permutation(len(self._all))
        task, seed = self._all[order[place]]
        return [RolloutJob(task, seed, member, draw) for member in range(size)]


@dataclass
class SampledGroups:
    """What one process has gathered in an iteration."""

    kept: list[Trajectory] = field(default_factory=list)
    groups: int = 0  # kept
    rollouts: int = 0  # played
    successes: int = 0
    well_formed: float = 0.0  # thoughts of all rollouts
    thoughts: int = 0
    tokens: int = 0
    steps: int = 0
    lost: list[Lost] = field(default_factory=list)
    next_draw: int = 0

    def count(self, found: Trajectory, good: int) -> None:
        """Adds one rollout to the figures."""
        self.rollouts += 1
        self.successes += found.success
        self.well_formed += good
        self.thoughts += len(found.moves)
        self.tokens += found.tokens
        self.steps += found.finish_step


def sample_groups(
    rollouts: Rollouts,
    prompts: InitialStates,
    settings: RolloutSettings,
    first_draw: int,
    version: int,
    good_thoughts: Callable[[Trajectory], int],
    store: RolloutStore | None = None,
    on_rollout: Callable[[SampledGroups], None] | None = None,
) -> SampledGroups:
    """Plays groups until this process has its share of those whose mean success lies between the bounds.

    Args:
        rollouts: plays episodes.
        prompts: what to play.
        settings: how much.
        first_draw: number of the first prompt, over all processes; this one takes every `world`-th.
        version: of the weights.
        good_thoughts: counts the well-formed thoughts of a trajectory.
        store: keeps what was played, should this process be killed.
        on_rollout: is shown the figures after each rollout, for whoever waits.
    """
    out = SampledGroups(next_draw=first_draw)
    share = -(-settings.prompts // parallel.world())
    low, high = settings.keep
    draw, tried = first_draw + parallel.rank(), 0
    while out.groups < share and tried < share * settings.max_rounds:
        wanted = min(share - out.groups, share * settings.max_rounds - tried)
        draws = [draw + i * parallel.world() for i in range(wanted)]
        draw, tried = draws[-1] + parallel.world(), tried + wanted
        groups: dict[int, list[Trajectory]] = {each: [] for each in draws}
        jobs = [job for each in draws for job in prompts.group(each, settings.group)]
        for result in _play(rollouts, jobs, version, store):
            if isinstance(result, Lost):
                out.lost.append(result)
                continue
            groups[result.job.draw].append(result)
            out.count(result, good_thoughts(result))
            if on_rollout is not None:
                on_rollout(out)
        for each in draws:  # in the order of the prompts, not of their ends: the same in every run
            group = sorted(groups[each], key=lambda t: t.job.member)
            if group and low <= float(np.mean([t.success for t in group])) <= high:
                out.kept += group
                out.groups += 1
    out.next_draw = draw - parallel.rank()
    return out


class RolloutStore:
    """Trajectories of the running iteration on disk.

    Args:
        folder: of this process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, found: Trajectory) -> None:
        """Writes one."""
        folder = self._of(found.version)
        with writing(f"The rollouts of iteration {found.version}"):
            folder.mkdir(parents=True, exist_ok=True)
            trajectory.save(folder / _name(found.job), [found])

    def find(self, job: RolloutJob, version: int) -> Trajectory | None:
        """The trajectory of a job under these weights, if it was played and is whole."""
        path = self._of(version) / _name(job)
        if not path.is_file():
            return None
        try:
            (found,) = trajectory.load(path)
        except ValueError:
            return None
        return found if found.job == job else None

    def forget(self) -> None:
        """Removes everything: the iteration is over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _of(self, version: int) -> Path:
        return self._folder / f"weights_{version:06d}"


def _name(job: RolloutJob) -> str:
    return f"draw_{job.draw:06d}_{job.member:03d}.npz"


def _play(
    rollouts: Rollouts, jobs: Sequence[RolloutJob], version: int, store: RolloutStore | None
) -> Iterator[Trajectory | Lost]:
    missing = []
    for job in jobs:
        found = store.find(job, version) if store else None
        if found is None:
            missing.append(job)
        else:
            yield found
    for result in rollouts.play(missing):
        if store and isinstance(result, Trajectory):
            store.keep(result)
        yield result
