"""The steps of a shot as plain functions: prompt, conditioning, denoising, latents, resume state, video."""
