"""What ROS takes as a name. No ROS in here."""

from __future__ import annotations

import re

_PART = "[A-Za-z][A-Za-z0-9_]*"
NAME = re.compile(_PART)  # one part: a node, a robot, a camera
TOPIC = re.compile(f"/?{_PART}(/{_PART})*")  # parts with slashes between them, perhaps absolute
RULE = "letters, digits and _ only, a letter first"
