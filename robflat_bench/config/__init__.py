"""The description of a run: protocol, recipe, study, the spec that its key hashes, and its cost."""
