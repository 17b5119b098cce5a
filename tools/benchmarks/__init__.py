"""What `make bench` runs: graph, thinking, export."""
