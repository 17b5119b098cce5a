"""The `dtvla` command: one file for each group of commands."""
