"""What a checkpoint and its predictions say: accuracy, resemblance, portraits, places, pictures."""
