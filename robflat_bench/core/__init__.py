"""What everything else stands on: errors, parameters, rows of the catalogue, and what each kind of component does."""
