"""The figures of the paper and of the README, one command each."""
