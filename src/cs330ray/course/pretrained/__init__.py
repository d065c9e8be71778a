"""Pre-trained language models: found, fetched, verified and converted once; loaded from safetensors alone."""
