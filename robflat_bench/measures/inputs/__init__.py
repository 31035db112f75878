"""What the network does around its inputs."""
