"""Many images to files: automatic masks and embeddings, over devices and processes, resumable."""
