"""Files: atomic writes, digests, folder walks, locks, progress; one mechanism each."""
