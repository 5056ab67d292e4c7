"""RandAR: codes in any order, each announced by a token that tells its location."""
