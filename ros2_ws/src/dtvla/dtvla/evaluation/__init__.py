"""Closed-loop evaluation: episodes, worker pools, results and statistics, comparison, gate, report."""
