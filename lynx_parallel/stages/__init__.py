"""The steps of a shot as plain functions: subject, prompt, denoise, decode, encode, score."""
