"""A Hugging Face hub: what is on it downloaded, unpacked, and its layout understood."""
