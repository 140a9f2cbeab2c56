"""The Lynx model in torch, written as for one device. Imports neither Ray nor xfuser."""
