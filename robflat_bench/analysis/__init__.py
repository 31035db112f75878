"""What numbers of several networks say: `statistics` (intervals, ranks, ties, comparisons) and `correlation` (of a
measure with a target). numpy and, lazily, scipy; arrays in, plain values out: nothing here knows records or files."""
