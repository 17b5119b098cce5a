"""Reinforcement learning: rollouts in the simulator, GRPO, and the loop around both (docs/training_rl.md)."""
