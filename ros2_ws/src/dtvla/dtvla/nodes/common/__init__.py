"""What all nodes share: lifecycle, parameters, diagnostics, QoS, message conversion."""
