"""The demo: a small segmentation task on real pixels that only context can solve, four networks, one report.

Needs the extra `ema_ops[demo]`. Start it with `ema-ops demo`.
"""
