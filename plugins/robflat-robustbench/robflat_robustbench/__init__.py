"""RobustBench's models and published numbers for robflat-bench."""
