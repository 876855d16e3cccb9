"""Language models on the text of files: corpus, vocabulary, baselines, network, and the run that trains it."""
