"""What both stages share: configuration, files, data sets, randomness and processes."""
