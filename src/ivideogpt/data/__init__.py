"""Raw data to batches: episodes, the readers of their formats, segments, augmentation and the loader."""
