"""What the three scripts share. Its rooms stand in the order of the data's way."""
