"""Supervised fine-tuning on thoughts and actions: one hybrid-attention pass, one cross entropy."""
