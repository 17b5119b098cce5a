"""Looks for what would keep the graph from running, and says what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dtvla.bringup import domains, shared_memory

RENDER_TIMEOUT_S = 120.0
SMALLEST_SHM_BYTES = 64 << 20
_TALK = """
import rclpy, time
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node("dtvla_doctor")
heard = []
node.create_subscription(String, "/dtvla_doctor", heard.append, 1)
out = node.create_publisher(String, "/dtvla_doctor", 1)
end = time.monotonic() + 10
while not heard and time.monotonic() < end:
    out.publish(String(data="hello"))
    rclpy.spin_once(node, timeout_sec=0.1)
rclpy.shutdown()
raise SystemExit(0 if heard else 1)
"""
_RENDER = """
from dtvla.sim.env import SimEnv
env = SimEnv("embedded", 0, image_size=64)
pictures = env.reset(0).images.values()
flat = any(picture.min() == picture.max() for picture in pictures)
env.close()
raise SystemExit("A camera renders one colour. Try MUJOCO_GL=osmesa (package libosmesa6)." if flat else 0)
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is well, and what was found or what to do."""

    name: str
    well: bool
    words: str


def examine(bundle: Path | None) -> list[Finding]:
    """Runs all checks; about half a minute, most of it for the simulator.

    Args:
        bundle: the bundle to verify; None takes the shipped one.
    """
    checks: dict[str, Callable[[], str]] = {
        "Python": _python,
        "ROS 2 messages": _messages,
        "ROS domain": _domain,
        "DDS on this machine": _dds,
        "Shared memory": _shared_memory,
        "GL library": _gl,
        "Simulator and cameras": _simulator,
        "Policy bundle": lambda: _bundle(bundle),
    }
    return [_finding(name, check) for name, check in checks.items()]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except Exception as error:  # whatever is wrong is what we are here to tell
        return Finding(name, False, str(error) or type(error).__name__)


def _python() -> str:
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise RuntimeError(
            f"Python {sys.version.split()[0]} has no ROS 2 wheels; 3.10 to 3.13 have. "
            "Install python3.11 and set up again: make distclean demo."
        )
    return f"{sys.version.split()[0]}, {os.cpu_count()} processors"


def _messages() -> str:
    try:
        import rclpy  # noqa: F401

        import dtvla_msgs.msg  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"{error}. Build the workspace: make setup.") from error
    return "rclpy and dtvla_msgs import"


def _domain() -> str:
    with domains.reserve() as free:
        busy = sum(domains.is_busy(domain) for domain in domains.DOMAINS)
        return f"domain {free.domain} is free ({busy} of {len(domains.DOMAINS)} are in use)"


def _dds() -> str:
    with domains.reserve() as free:
        environment = os.environ | {
            "ROS_DOMAIN_ID": str(free.domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        done = subprocess.run([sys.executable, "-c", _TALK], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"A node did not hear its own message within 10 s. {_last_line(done.stderr)} Is a firewall "
            "closing the loopback device, or FASTDDS_DEFAULT_PROFILES_FILE set to a wrong file?"
        )
    return "a message came through"


def _shared_memory() -> str:
    if not shared_memory.SHM.is_dir():
        return f"no {shared_memory.SHM}: messages go over loopback UDP"
    free = shutil.disk_usage(shared_memory.SHM).free
    if free < SMALLEST_SHM_BYTES:
        raise RuntimeError(
            f"{shared_memory.SHM} has {free >> 20} MB left; 64 MB are needed. In Docker: --shm-size=256m."
        )
    used = shared_memory.stems_in_use()
    stale = {
        stem
        for path in shared_memory.SHM.iterdir()
        if (stem := shared_memory.stem_of(path.name)) and stem not in used
    }
    rest = f"; {len(stale)} stale Fast DDS segments (harmless)" if stale else ""
    return f"{free >> 20} MB free{rest}"


def _gl() -> str:
    from dtvla.sim.bootstrap import choose_gl

    return f"MuJoCo renders with {choose_gl()}"


def _simulator() -> str:
    done = subprocess.run(
        [sys.executable, "-c", _RENDER], capture_output=True, text=True, timeout=RENDER_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(_last_line(done.stderr) or f"it ended with status {done.returncode}")
    return "both cameras show a picture"


def _bundle(path: Path | None) -> str:
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    bundle = Bundle.load(path or default_bundle())
    return f"{bundle.path} is whole (fingerprint {bundle.fingerprint[:16]})"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
