"""What several tests share: fakes, naive references, fixtures of boards and plugins."""
