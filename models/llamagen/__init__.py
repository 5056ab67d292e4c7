"""LlamaGen's GPT: codes of one scale in raster order, trained on them or first on patches of them."""
