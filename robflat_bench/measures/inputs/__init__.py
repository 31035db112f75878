"""What the network does around its images."""
