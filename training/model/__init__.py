"""The model in torch: published parameter names, attention, KV cache, checkpoints. Imports no other room."""
