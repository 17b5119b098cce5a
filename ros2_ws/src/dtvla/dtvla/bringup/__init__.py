"""What brings the graph up: its tables of nodes and ports, launchers, domains, security, diagnosis."""
