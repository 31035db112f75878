"""What a run is: protocol, recipe, study, the spec that its key is made of, and what it will cost."""
