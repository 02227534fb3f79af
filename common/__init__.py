"""What every paper needs and no paper is about: options, runs, checkpoints, statistics, ranks, video."""
