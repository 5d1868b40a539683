"""Accuracy validation of the segmentation network: `ema-ops validate`, one report."""
