"""Rasters and images read, tiled and stored; patches read, in batches, on the device."""
