"""What fine-tuning changes, step by step."""
