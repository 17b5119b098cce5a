"""Nodes that show the thought: console, rviz markers, overlay picture."""
