"""The hall: the vocabulary that every room shares. No torch and no transformers outside nn/."""
