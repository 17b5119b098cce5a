"""What all lifecycle nodes of the graph share: checked parameters, sentences instead of tracebacks.

A node fills in `configure`, `activate`, `deactivate` and `cleanup`. Whatever it creates in `activate`
through `self.live(...)` is undone in reverse order on deactivation.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, ClassVar, ParamSpec, TypeVar

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from dtvla.errors import DtvlaError
from dtvla.nodes.common.diagnostics import Reporter
from dtvla.nodes.common.parameters import Schema, Settings, validate

P = ParamSpec("P")
T = TypeVar("T")


class GraphNode(LifecycleNode):
    """A lifecycle node that never answers with a traceback and never dies of an exception in a callback."""

    schema: ClassVar[Schema] = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.report = Reporter(self)
        self.settings = Settings({})
        self._undo: list[Callable[[], Any]] = []
        self._configured = False
        self._declared = False
        self.add_on_set_parameters_callback(self._refuse_late_changes)

    def configure(self) -> None:
        """Checks and loads; raises `Refusal` or another ValueError with a sentence when it cannot."""

    def activate(self) -> None:
        """Creates publishers, subscriptions, services and timers."""

    def deactivate(self) -> None:
        """Ends what `live` does not undo by itself; called before that."""

    def cleanup(self) -> None:
        """Undoes `configure`."""

    def live(self, entity: T, destroy: Callable[[T], Any]) -> T:
        """Notes how to undo `entity` on deactivation, and returns it."""
        self._undo.append(lambda: destroy(entity))
        return entity

    def guarded(self, callback: Callable[P, T]) -> Callable[P, T | None]:
        """Wraps a callback: an exception becomes a diagnostic, and the node lives on."""

        name = getattr(callback, "__name__", None) or getattr(callback, "func", callback).__name__
        failed = False

        def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
            nonlocal failed
            try:
                answer = callback(*args, **kwargs)
            except Exception as error:  # the last line of defence of a robot's process
                failed = True
                self.report.problem(f"internal {name}", f"{name} failed: {describe(error)}")
                self.get_logger().debug(traceback.format_exc())
                return None
            if failed:
                failed = False
                self.report.solved(f"internal {name}")
            return answer

        return call

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("deactivate", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("clean up", self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("shut down", self.close)

    def close(self) -> None:
        """Ends everything, from whatever state, as often as it is called."""
        self._deactivate()
        if self._configured:
            self._cleanup()

    def _configure(self) -> None:
        self.settings = validate(self.schema, self._declare())
        self.configure()
        self._configured = True

    def _activate(self) -> None:
        try:
            self.activate()
        except Exception:
            self._undo_all()
            raise

    def _deactivate(self) -> None:
        try:
            if self._undo:
                self.deactivate()
        finally:
            self._undo_all()

    def _undo_all(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _cleanup(self) -> None:
        self.cleanup()
        self._configured = False

    def _transition(self, verb: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except Exception as error:
            self.report.problem("lifecycle", f"{self.get_name()} could not {verb}: {describe(error)}")
            self.get_logger().debug(traceback.format_exc())
            return TransitionCallbackReturn.FAILURE
        self.report.solved("lifecycle")
        return TransitionCallbackReturn.SUCCESS

    def _declare(self) -> dict[str, object]:
        if not self._declared:
            self._declared = True
            return declare(self, self.schema)
        return {item.name: self.get_parameter(item.name).value for item in self.schema}

    def _refuse_late_changes(self, parameters: list[RosParameter]) -> SetParametersResult:
        """Parameters are read on configuration; a later change would be accepted and do nothing."""
        ours = {item.name for item in self.schema}
        late = [parameter.name for parameter in parameters if parameter.name in ours]
        if self._configured and late:
            reason = f"'{late[0]}' is read when the node is configured. Deactivate and clean up first."
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)


def declare(node: Node, schema: Schema, *, read_only: bool = False) -> dict[str, object]:
    """Declares all parameters of a schema; returns their values as they were given, unchecked."""
    for item in schema:
        words = f"{item.sentence} [{item.bounds}{' ' + item.unit if item.unit else ''}]"
        # dynamic_typing: a wrong type then reaches our own check, which answers with a sentence
        descriptor = ParameterDescriptor(description=words, dynamic_typing=True, read_only=read_only)
        node.declare_parameter(item.name, item.default, descriptor)
    return {item.name: node.get_parameter(item.name).value for item in schema}


def describe(error: Exception) -> str:
    """An exception in words: the sentence of those written for people, type and message of the others."""
    if isinstance(error, (DtvlaError, FileNotFoundError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
