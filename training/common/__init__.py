"""What every training run needs: processes, checkpoints, settings, optimisers, exported graphs."""
