"""Clients in the bridge's process: nodes that may look at the simulated world directly (decision 0011).

What a camera, a joint encoder or an operator could not tell is on no topic of the bridge. A script that
needs it decides as a client in the policy's place, and an episode monitor notes how it went. The bridge
calls them; chunks and commands still go through the graph.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from typing import Any

from rclpy.event_handler import QoSSubscriptionMatchedInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from std_msgs.msg import String

from dtvla.evaluation.policy_adapters import Script
from dtvla.evaluation.results import failed
from dtvla.nodes.bridge.simulation_session import SimulationSession
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import chunk_message, to_duration, to_ns
from dtvla.sim.env import CONTROL_PERIOD_S, Observation, metric_actions
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta

READY = {"ready": True}  # the episode monitor's first message: it hears whoever decides


class BenchmarkUnits:
    """The benchmark's units, as a policy's spec would say them; a script's chunk has one row."""

    control_period_s = CONTROL_PERIOD_S
    execute_steps = 1

    metric = staticmethod(metric_actions)


class BridgeClient(Node):
    """A node in the bridge's process and namespace; it lives while the bridge is active.

    Args:
        name: its name in the graph.
        bridge: whose client it is.
        world: the bridge's world; to be asked, never stepped.
        frame: the robot's base frame.
    """

    def __init__(self, name: str, bridge: Node, world: SimulationSession, frame: str) -> None:
        super().__init__(
            name,
            context=bridge.context,
            namespace=bridge.get_namespace(),
            use_global_arguments=False,  # they name the bridge
            enable_rosout=False,
            start_parameter_services=False,
        )
        self._world, self._frame = world, frame

    def begin(self) -> None:
        """The world has been reset; its first tick is not published yet.

        Raises:
            ValueError: the episode cannot be played; it is then not begun.
        """

    def tick(self, stamp_ns: int) -> None:
        """The tick of a stamp has been published, perhaps not for the first time."""

    def executed(self, command: EndEffectorDelta | None) -> None:
        """The world has executed a command; None: there was none, and the arm stayed."""


class ScriptedPolicyClient(BridgeClient):
    """Publishes the chunks of a script in the policy's place, one for each tick."""

    def __init__(
        self,
        bridge: Node,
        world: SimulationSession,
        frame: str,
        script: Script,
        on_failed: Callable[[str], None],
    ) -> None:
        super().__init__("scripted_policy_node", bridge, world, frame)
        self._script, self._on_failed = script, on_failed
        self._ids = count(1)
        self._last: ActionChunk | None = None
        self._chunks = self.create_publisher(ActionChunk, "policy/action_chunk", qos.COMMAND)

    def begin(self) -> None:
        self._last = None
        self._script.start(self._world.env, self._world.seed, self._world.seen)

    def tick(self, stamp_ns: int) -> None:
        if self._world.done:
            return
        if self._last is None or to_ns(self._last.header.stamp) != stamp_ns:
            try:
                self._last = self._decide(stamp_ns)
            except ValueError as error:
                self._world.abandon()
                self._on_failed(str(error))
                return
        self._chunks.publish(self._last)  # a tick that is shown again waits for it

    def _decide(self, stamp_ns: int) -> ActionChunk:
        started = time.perf_counter()
        choice = self._script.decide(self._world.seen)
        seconds = time.perf_counter() - started
        chunk = chunk_message(
            BenchmarkUnits(),
            choice.raw_actions[:1],
            decision_id=next(self._ids),
            stamp_ns=stamp_ns,
            base_frame=self._frame,
        )
        chunk.instruction, chunk.thought = self._world.env.instruction, choice.thought
        chunk.thought_stamp, chunk.inference_time = chunk.header.stamp, to_duration(seconds)
        return chunk


class EpisodeMonitor(BridgeClient):
    """Publishes the result of each episode as JSON on episode_result: what `dtvla eval` would write of it.

    Before the first one it says `READY`. A result has the episode's number (as in TaskState) under
    "episode", and an `EpisodeResult` under "result".

    Args:
        exact: in lockstep every action must be the policy's own, else the result is an error.
    """

    def __init__(self, bridge: Node, world: SimulationSession, frame: str, exact: bool) -> None:
        super().__init__("episode_monitor_node", bridge, world, frame)
        self._exact = exact
        self._open = False
        self._executed: dict[int, None] = {}
        self._observations: dict[int, Observation] = {}
        self._chunks: dict[int, ActionChunk] = {}
        self._changed = 0
        self._results = self.create_publisher(String, "episode_result", qos.LATCHED)
        self.create_subscription(
            ActionChunk,
            "policy/action_chunk",
            self._on_chunk,
            qos.patient(qos.COMMAND),
            event_callbacks=SubscriptionEventCallbacks(matched=self._on_matched),
        )

    def begin(self) -> None:
        self._executed, self._observations, self._chunks = {}, {}, {}
        self._changed, self._open = 0, True

    def tick(self, stamp_ns: int) -> None:
        self._observations[stamp_ns] = self._world.seen
        self._hand_in()

    def executed(self, command: EndEffectorDelta | None) -> None:
        if command is not None and not command.hold:
            self._executed.setdefault(command.decision_id)
        self._changed += command is None or len(command.raw_action) == 0

    def fail(self, sentence: str) -> None:
        """The episode was given up; says why."""
        info = self._world.info
        self._publish(asdict(failed(info.index, self._world.seed, sentence, info.name)))

    def _on_matched(self, info: QoSSubscriptionMatchedInfo) -> None:
        if info.current_count > 0 and not self._open:
            self._results.publish(String(data=json.dumps(READY)))

    def _on_chunk(self, chunk: ActionChunk) -> None:
        self._chunks.setdefault(chunk.decision_id, chunk)
        self._hand_in()

    def _hand_in(self) -> None:
        """Publishes the result once the episode is over and all its decisions are here: a chunk may come
        later than the last command that was made of it.
        """
        record = self._world.record
        if not self._open or not self._world.done or record is None or self._world.observation is None:
            return
        if not self._executed.keys() <= self._chunks.keys():
            return
        for chunk in (self._chunks[number] for number in self._executed):
            duration = chunk.inference_time
            look = self._observations[to_ns(chunk.header.stamp)]
            record.decided(chunk, look, duration.sec + duration.nanosec / 1e9)
        result = record.result()
        if self._changed and self._exact:
            sentence = (
                f"The controller changed or held {self._changed} of {result.steps} actions, so this was not "
                "the policy's episode. Its diagnostics say why; its limits are parameters."
            )
            result = replace(result, error=sentence)
        self._publish(asdict(result))

    def _publish(self, result: dict[str, Any]) -> None:
        self._open = False
        content = {"episode": self._world.episode, "result": result}
        self._results.publish(String(data=json.dumps(content)))
