"""Training of DeepThinkVLA policies: model, data, supervised fine-tuning."""
