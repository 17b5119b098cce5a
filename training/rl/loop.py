"""The loop: gather groups, update, hand the weights to the workers, save, evaluate; resumes exactly."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from dtvla.evaluation.results import EvalOptions
from dtvla.evaluation.runner import plan
from dtvla.evaluation.statistics import wilson
from training.common import parallel
from training.common.run_checkpoints import (
    Checkpoints,
    TrainingError,
    full_weights,
    load_trainer,
    save_trainer,
    writing,
)
from training.common.schedules import cosine_share
from training.model.deepthinkvla import DeepThinkVLA
from training.model.hf_checkpoint import load_policy, resolve, save_policy
from training.model.onednn import use_onednn
from training.rl.group_sampling import InitialStates, RolloutStore, SampledGroups, sample_groups
from training.rl.learner import GrpoLearner, Scorer
from training.rl.settings import Rl, essence
from training.rl.trajectory import RolloutJob, Trajectory
from training.rl.workers import Rollouts, RolloutWork, Weights, Workers

RUN, BEST = "run.json", "best.json"
Make = Callable[[RolloutWork], Rollouts]


class Run:
    """One run of reinforcement learning, in every process of it.

    Args:
        settings: of the run.
        make: makes what plays episodes; None takes this machine's processes, or Ray as the settings say.
    """

    def __init__(self, settings: Rl, make: Make | None = None) -> None:
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.folder = resolve(settings.checkpoint)
        self.policy = load_policy(self.folder)
        self.checkpoints = Checkpoints(settings.out, settings.keep)
        self.iteration = self.next_draw = 0
        self.best = -1.0
        self._synced = 0  # the iteration whose weights the workers have
        self.learner = self._learner()
        self._resume()
        self._prompts = InitialStates(settings.rollout, settings.seed)
        precision = settings.optimiser.precision
        work = RolloutWork(self.folder, settings.rollout, settings.evaluation, settings.seed, precision)
        self.rollouts = (make or _maker(settings))(work)
        self._store = RolloutStore(rollout_folder(settings)) if settings.keep_rollouts else None
        self._evaluation = evaluation_jobs(settings)
        self.tell: Callable[[str], object] = lambda words: None  # what is going on, for whoever waits

    @property
    def model(self) -> DeepThinkVLA:
        """The policy that learns."""
        return self.learner.scorer.model

    def iterate(self) -> dict[str, float]:
        """One iteration: rollouts, updates. Returns what is logged."""
        settings, started = self.settings, time.monotonic()
        self.sync()
        gathered = sample_groups(
            self.rollouts,
            self._prompts,
            settings.rollout,
            self.next_draw,
            self.iteration,
            self._well_formed,
            self._store,
            self._told,
        )
        self.tell(f"iteration {self.iteration + 1}: {len(gathered.kept)} rollouts to learn from")
        parallel.wait()
        played = time.monotonic()
        for group in self.learner.optimiser.param_groups:
            group["lr"] = learning_rate(settings, self.iteration)
        figures = self._figures(gathered)
        if parallel.largest(int(not gathered.kept)):
            figures["skipped_iterations"] = 1.0  # in one process at least no group can teach anything
        else:
            figures |= self.learner.update(gathered.kept, (settings.seed, self.iteration, parallel.rank()))
        self.next_draw = parallel.largest(gathered.next_draw)
        self.iteration += 1
        rollout_s, update_s = played - started, time.monotonic() - played
        return figures | {
            "rollout_s": rollout_s,
            "update_s": update_s,
            "steps_per_s": figures["environment_steps"] / rollout_s,
            "learning_rate": learning_rate(settings, self.iteration - 1),
        }

    def sync(self) -> None:
        """Hands the weights to the workers of all processes, in a file."""
        if self.iteration == self._synced:
            return
        file = self.settings.out / "sync" / f"weights_{self.iteration:06d}.safetensors"
        weights = full_weights(self.model)
        if parallel.rank() == 0:
            part = file.with_suffix(".part")
            with writing(f"The weights of iteration {self.iteration} for the workers"):
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part)
                os.replace(part, file)
            for old in file.parent.glob("*.safetensors"):
                if old != file:
                    old.unlink()
        parallel.wait()
        self.rollouts.sync(Weights(file, self.iteration))
        self._synced = self.iteration

    def save(self) -> Path:
        """Writes the checkpoint of this iteration."""
        saved = self.checkpoints.save(self.iteration, self._write)
        if self._store:
            self._store.forget()
        return saved

    def evaluate(self) -> float:
        """Success of greedy episodes, over all processes."""
        self.sync()
        own = self._evaluation[parallel.rank() :: parallel.world()]
        results = []
        for ended, each in enumerate(self.rollouts.play(own), 1):
            self.tell(f"evaluation: {ended} of {len(own)} episodes")
            if isinstance(each, Trajectory):
                results.append(each)
        counts = torch.tensor([len(results), sum(t.success for t in results)], dtype=torch.float64)
        played, solved = parallel.total(counts).tolist()
        if played == 0:
            raise TrainingError("No episode of the evaluation could be played to its end.")
        return float(solved / played)

    def call_best(self, saved: Path, success: float) -> None:
        """Makes a checkpoint the best one so far."""
        self.best = success
        self.checkpoints.mark_best(saved)
        if parallel.rank() == 0:
            with writing("What the best checkpoint reached"):
                (self.settings.out / BEST).write_text(json.dumps({"success": success, "of": saved.name}))

    def close(self) -> None:
        """Ends the workers."""
        self.rollouts.close()

    def _learner(self) -> GrpoLearner:
        settings = self.settings
        model = prepared(self.policy.model, settings)
        scorer = _scorer(model, settings)
        optimiser = torch.optim.AdamW(
            [p for p in scorer.parameters() if p.requires_grad],
            lr=settings.optimiser.lr,
            betas=settings.optimiser.betas,
            weight_decay=settings.optimiser.weight_decay,
        )
        reference = None
        if settings.loss.kl_coef:
            reference = _scorer(load_policy(self.folder).model.requires_grad_(False), settings)
        return GrpoLearner(
            scorer,
            optimiser,
            self.policy.spec.layout,
            self.policy.spec.image,
            settings.loss,
            settings.optimiser,
            settings.rollout,
            reference,
        )

    def _resume(self) -> None:
        last = self.checkpoints.last()
        if last is None:
            return
        try:
            before = json.loads((last / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise TrainingError(
                f"{last} is no checkpoint of a run of training.rl: {RUN} is not in it."
            ) from None
        now = json.loads(json.dumps(essence(self.settings)))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise TrainingError(
                    f"{last} was made with {key} = {before.get(key)!r}, this run has {now.get(key)!r}. Give "
                    "another --out, or the settings that it was made with."
                )
        rest = {"iteration": 0, "next_draw": 0}
        state = load_trainer(last, self.learner.scorer, [self.learner.optimiser], rest)
        self.iteration, self.next_draw = int(state["iteration"]), int(state["next_draw"])
        best = self.settings.out / BEST
        if best.is_file():
            self.best = float(json.loads(best.read_text(encoding="utf-8"))["success"])

    def _write(self, folder: Path) -> None:
        weights = full_weights(self.model)
        if parallel.rank() == 0:
            run = essence(self.settings)
            spec = replace(
                self.policy.spec,
                provenance={
                    **self.policy.spec.provenance,
                    "rl": {"from": str(self.folder), "iteration": self.iteration, "settings": run},
                },
            )
            save_policy(folder, self.model.config, weights, spec, self.policy.tokenizer)
            (folder / RUN).write_text(json.dumps(run, indent=1), encoding="utf-8")
        rest = {"iteration": self.iteration, "next_draw": self.next_draw}
        save_trainer(folder, self.learner.scorer, [self.learner.optimiser], rest)

    def _told(self, so_far: SampledGroups) -> None:
        self.tell(
            f"iteration {self.iteration + 1}: {so_far.rollouts} rollouts, {so_far.successes} solved, "
            f"{so_far.groups} of {self.settings.rollout.prompts} groups kept"
        )

    def _well_formed(self, found: Trajectory) -> int:
        return sum(move.well_formed(self.policy.spec.layout) for move in found.moves)

    def _figures(self, gathered: SampledGroups) -> dict[str, float]:
        sums = parallel.total(
            torch.tensor(
                [
                    gathered.rollouts,
                    gathered.successes,
                    gathered.thoughts,
                    gathered.well_formed,
                    gathered.tokens,
                    gathered.groups,
                    gathered.steps,
                    len(gathered.lost),
                ],
                dtype=torch.float64,
            )
        ).tolist()
        if sums[0] == 0:
            reason = gathered.lost[0].reason if gathered.lost else "in another process"
            raise TrainingError(
                f"No rollout of iteration {self.iteration} could be played to its end: {reason}"
            )
        return {
            "success": sums[1] / sums[0],
            "format_share": sums[3] / max(1.0, sums[2]),
            "thought_length": sums[4] / max(1.0, sums[2]),
            "episode_steps": sums[6] / sums[0],
            "environment_steps": sums[6],
            "rollouts": sums[0],
            "kept_groups": sums[5],
            "kept_share": sums[5] * self.settings.rollout.group / sums[0],
            "lost_rollouts": sums[7],
        }


def train(settings: Rl, console: Console, make: Make | None = None) -> None:
    """Runs until the last iteration, or resumes where the last checkpoint stands."""
    run = Run(settings, make)
    first = parallel.rank() == 0
    end = min(settings.iterations, settings.stop_after or settings.iterations)
    writer = SummaryWriter(str(settings.out), purge_step=run.iteration + 1) if first else None
    if run.iteration and first:
        console.print(f"goes on from iteration {run.iteration}")
    status = console.status("starting the simulators")
    run.tell = status.update
    try:
        status.start()
        if run.iteration == 0 and settings.evaluation.every:
            _report(run, run.evaluate(), writer, console)
        while run.iteration < end:
            figures = run.iterate()
            number = run.iteration
            due = bool(settings.evaluation.every) and (
                number % settings.evaluation.every == 0 or number == end
            )
            saved = run.save() if number % settings.save_every == 0 or number == end or due else None
            if writer is not None:
                for name, value in figures.items():
                    writer.add_scalar(f"rl/{name}", value, number)
                console.print(_line(number, settings.iterations, figures), highlight=False)
            if due and saved is not None:
                success = run.evaluate()
                _report(run, success, writer, console)
                if success > run.best:
                    run.call_best(saved, success)
    finally:
        status.stop()
        run.close()
        if writer is not None:
            writer.close()


def learning_rate(settings: Rl, iteration: int) -> float:
    """A cosine without warm-up, one step per iteration."""
    own = settings.optimiser
    return own.lr * cosine_share(iteration, settings.iterations, 0, own.final_lr)


def evaluation_jobs(settings: Rl) -> list[RolloutJob]:
    """The greedy episodes, planned as `dtvla eval` plans them.

    Raises:
        TrainingError: there are no such tasks, or not so many first states.
    """
    own, rollout = settings.evaluation, settings.rollout
    options = EvalOptions(
        settings.checkpoint,
        suite=rollout.suite,
        episodes=own.episodes,
        seed0=own.first_seed,
        tasks=rollout.tasks,
        variation=rollout.variation,
    )
    try:
        return [RolloutJob(task, seed, greedy=True) for task, seed in plan(options)]
    except ValueError as error:
        raise TrainingError(f"evaluation: {error}") from None


def rollout_folder(settings: Rl) -> Path:
    """Where this process keeps what it played; other settings play otherwise, and find nothing there."""
    digest = hashlib.sha256(json.dumps(essence(settings)).encode()).hexdigest()[:12]
    return settings.out / f"rollouts_{parallel.rank()}" / digest


def prepared(model: DeepThinkVLA, settings: Rl) -> DeepThinkVLA:
    """The model with the parts frozen that the settings do not train."""
    own = settings.optimiser
    model.requires_grad_(True)
    model.vision_tower.requires_grad_(own.train_vision)
    model.multi_modal_projector.requires_grad_(own.train_projector)
    if own.onednn:
        use_onednn(model)
    if own.recompute:
        parallel.recompute_layers(model)
    return model


def _scorer(model: DeepThinkVLA, settings: Rl) -> Scorer:
    pads = settings.loss.faults.visible_pads
    scorer = Scorer(model.to(settings.device), settings.rollout, settings.optimiser, pads=pads)
    scorer = scorer.to(settings.device)
    dtype = torch.bfloat16 if settings.optimiser.precision == "bf16" else torch.float32
    parallel.shard(scorer, model, dtype)
    return scorer


def _maker(settings: Rl) -> Make:
    if not settings.rollout.ray:
        return Workers
    from training.rl.ray_rollouts import crew

    return crew


def _report(run: Run, success: float, writer: SummaryWriter | None, console: Console) -> None:
    episodes = run.settings.evaluation.episodes
    low, high = wilson(round(success * episodes), episodes)
    if writer is not None:
        writer.add_scalar("evaluation/success", success, run.iteration)
        console.print(
            f"  evaluation: {success:.3f} of {episodes} greedy episodes (95 % {low:.2f} to {high:.2f})",
            highlight=False,
        )


def _line(number: int, iterations: int, figures: dict[str, Any]) -> str:
    said = [f"iteration {number}/{iterations}"]
    for name in ("success", "kept_groups", "format_share", "thought_length", "thought_entropy", "clip_share",
                 "kl_to_rollout", "grad_norm", "rollout_s", "update_s"):  # fmt: skip
        if name in figures:
            said.append(f"{name} {figures[name]:.3g}")
    return "  ".join(said)
