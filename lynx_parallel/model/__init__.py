"""The Lynx model in torch: reads as on one device, imports neither Ray nor xfuser."""
