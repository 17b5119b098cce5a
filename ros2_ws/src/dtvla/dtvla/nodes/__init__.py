"""The ROS graph: thin lifecycle nodes around `dtvla.policy`, `dtvla.control` and `dtvla.sim`."""
