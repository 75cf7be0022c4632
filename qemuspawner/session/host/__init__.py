"""What a session takes of its host: its folder and the claim on it, images, memories, GPUs, its turn."""
