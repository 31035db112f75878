"""What plugins offer: hooks, the plugin manager, name -> component, and the grammar that names components."""
