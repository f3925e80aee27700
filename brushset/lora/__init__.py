"""What a LoRA file is: its keys, its metadata, its checks and its two forms."""
