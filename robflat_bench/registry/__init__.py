"""Plugins and components: the hooks, the plugin manager, kind and name -> component, and the components' grammar."""
