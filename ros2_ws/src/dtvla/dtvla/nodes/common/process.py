"""Runs one node as a process that ends when it is told to, and never outlives its launcher."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

PARENT_VARIABLE = "DTVLA_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Asks the kernel for SIGTERM when the launcher dies, however it dies (even by SIGKILL).

    Does nothing for a node that was started by hand. Linux only: elsewhere the launcher's own
    clean-up has to do.
    """
    launcher = os.environ.get(PARENT_VARIABLE)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it died before the line above
        raise SystemExit(1)


def run(make_node: Callable[[], Node]) -> int:
    """Spins the node until SIGINT or SIGTERM, or until it ends ROS itself.

    Returns:
        the exit status: the node's attribute `status` where it has one, else 0.
    """
    end_with_launcher()
    try:
        rclpy.init()
    except Exception as error:
        print(f"ROS could not start: {error}. Check the arguments behind --ros-args.", file=sys.stderr)
        return 2
    try:
        node = make_node()
    except Exception:
        if rclpy.ok():
            raise
        return 0  # it was told to end while it was being made
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        _spin(executor, node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        # The terminal and the launcher both send SIGINT: the second one must not interrupt the ending.
        signal.signal(signal.SIGINT, lambda *_: None)
        close = getattr(node, "close", None)
        if close is not None:
            close()
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nor Python's own end, which resets other handlers
        gc.collect()  # an interrupted simulator must go before the GL library ends, not after
    return int(getattr(node, "status", 0))


def _spin(executor: SingleThreadedExecutor, node: Node) -> None:
    """Spins on whatever a callback raises: a robot's process reports its fault and stays alive."""
    while True:
        try:
            executor.spin()
            return
        except (KeyboardInterrupt, ExternalShutdownException):
            raise
        except Exception as error:
            node.get_logger().error(f"A callback failed: {type(error).__name__}: {error}")
