"""The site: static pages from the board."""
